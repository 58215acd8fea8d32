"""List the dead latents and count them on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, power_of_two


@triton.jit
def dead_at(idle, block, m, dead_after, BLOCK: tl.constexpr):
    """Return the latents of a block, and which have been idle for at least `dead_after` tokens."""
    latent = block * BLOCK + tl.arange(0, BLOCK)
    return latent, tl.load(idle + latent, latent < m, other=-1) >= dead_after


@triton.jit
def count_dead(idle, block_counts, m, dead_after, BLOCK: tl.constexpr):
    """Count the dead latents of one block.

    Args:
        idle: [m] int64, tokens since each latent fired.
        block_counts: [blocks] int32 output.
        m: number of latents.
        dead_after: tokens after which a latent is dead.
        BLOCK: latents per program.
    """
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
    """List the dead latents of one block after those of the previous blocks.

    Entries of the list without a dead latent get m; each program fills those in its own range.

    Args:
        idle: [m] int64, tokens since each latent fired.
        block_counts: [blocks] int32, from `count_dead`.
        latents: [capacity] int64 output.
        count: [1] int32 output, number of latents in the list.
        m: number of latents.
        dead_after: tokens after which a latent is dead.
        capacity: length of the list.
        blocks: number of blocks.
        BLOCK: latents per program.
        LANES: counts per iteration.
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
    """List the dead latents with the lowest indices.

    Args:
        idle: [m] int64, tokens since each latent fired.
        dead_after: tokens after which a latent is dead.
        capacity: length of the list, at most m.

    Returns:
        The list [capacity] int64, ascending and padded with m, and the number of dead latents in
        it, [1] int32.
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
