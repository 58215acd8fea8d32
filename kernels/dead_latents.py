"""The list of dead latents and their number, made on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two


@triton.jit
def dead_at(idle, block, m, dead_after, BLOCK: tl.constexpr):
    """Return the latents of a block, and whether each has been idle for `dead_after` tokens."""
    latent = block * BLOCK + tl.arange(0, BLOCK)
    return latent, tl.load(idle + latent, latent < m, other=-1) >= dead_after


@triton.jit
def count_dead(idle, block_counts, m, dead_after, BLOCK: tl.constexpr):
    """Count the dead latents of one block."""
    block = tl.program_id(0)
    _, dead = dead_at(idle, block, m, dead_after, BLOCK)
    tl.store(block_counts + block, tl.sum(dead.to(tl.int32)))


@triton.jit
def list_dead(
    idle,
    block_counts,
    latents,
    count,
    m,
    dead_after,
    capacity,
    blocks,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """List the dead latents of one block behind those of the blocks before it.

    Places of the block's own range that no dead latent takes get the number of latents.
    """
    block = tl.program_id(0)
    lane = tl.arange(0, LANES)
    before = 0
    total = 0
    for start in range(0, blocks, LANES):
        at = start + lane
        counts = tl.load(block_counts + at, at < blocks, other=0)
        before += tl.sum(tl.where(at < block, counts, 0))
        total += tl.sum(counts)
    listed = tl.minimum(total, capacity)
    latent, dead = dead_at(idle, block, m, dead_after, BLOCK)
    place = before + tl.cumsum(dead.to(tl.int32), 0) - 1
    tl.store(latents + place, latent.to(tl.int64), mask=dead & (place < capacity))
    free = (latent >= listed) & (latent < capacity)
    tl.store(latents + latent, tl.zeros((BLOCK,), tl.int64) + m, mask=free)
    if block == 0:
        tl.store(count, listed)


def dead_latents(idle: Tensor, dead_after: int, capacity: int) -> tuple[Tensor, Tensor]:
    """List the first latents that have been idle for `dead_after` tokens.

    Args:
        idle: int64 [m], the tokens since each latent fired.
        dead_after: the tokens after which a latent is dead.
        capacity: the length of the list, at most m.

    Returns:
        The list, int64 [capacity], ascending and filled up with m, and the number of dead latents
        in it, int32 [1].
    """
    m = idle.shape[0]
    block = 16 if interpreting() else 1024
    blocks = triton.cdiv(m, block)
    block_counts = torch.empty(blocks, dtype=torch.int32, device=idle.device)
    latents = torch.empty(capacity, dtype=torch.int64, device=idle.device)
    count = torch.empty(1, dtype=torch.int32, device=idle.device)
    count_dead[(blocks,)](idle, block_counts, m, dead_after, BLOCK=block, num_warps=4, **LAUNCH)
    list_dead[(blocks,)](
        idle,
        block_counts,
        latents,
        count,
        m,
        dead_after,
        capacity,
        blocks,
        BLOCK=block,
        LANES=min(power_of_two(blocks), 1024),
        num_warps=4,
        **LAUNCH,
    )
    return latents, count
