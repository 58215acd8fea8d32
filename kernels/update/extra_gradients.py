"""Find the additional gradients of latents, such as those of AuxK, by latent."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast.types import ExtraGradients

from ..device import LAUNCH, interpreting, power_of_two


class Slots(NamedTuple):
    """The slots of `ExtraGradients` by latent; slots of no latent are never read."""

    of_latent: Tensor
    """[m] int64, slot of each latent, -1 for none"""
    along: Tensor
    """[c] float32, product of each slot's decoder gradient with the decoder row; uninitialised for
    slots of no latent, or if not requested"""


@triton.jit
def fill_slots(
    extra_latents,
    extra_w_dec,
    w_dec,
    slots,
    along,
    latents,
    count,
    d,
    ALONG: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the slots of BLOCK latents, -1 for a latent without one.

    If ALONG, the program also multiplies the decoder gradient of the slot with its own number by
    the decoder row.

    Args:
        extra_latents: [count] int64, latents of the slots; an entry out of range belongs to none.
        extra_w_dec: [count, d] float32, gradients of decoder rows.
        w_dec: [latents, d] float32, decoder rows.
        slots: [latents] int64 output.
        along: [count] float32 output, if ALONG.
        latents: number of latents.
        count: number of slots.
        d: width.
        ALONG: whether `along` is computed.
        BLOCK: latents per program.
        BLOCK_D: elements of the width per iteration.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    begin = program * BLOCK
    tl.store(slots + begin + lane, tl.full((BLOCK,), -1, tl.int64), begin + lane < latents)
    tl.debug_barrier()  # other threads of this program write the same places
    end = tl.minimum(begin + BLOCK, latents)
    for i in range(0, tl.where(begin < latents, count, 0), BLOCK):
        latent = tl.load(extra_latents + i + lane, i + lane < count, other=-1)
        slot = (i + lane).to(tl.int64)
        tl.store(slots + latent, slot, (latent >= begin) & (latent < end))
    if ALONG:
        # A program without a slot of its own reads -1, which is no latent.
        latent = tl.load(extra_latents + program, program < count, other=-1)
        if (latent >= 0) & (latent < latents):
            products = tl.zeros((BLOCK_D,), tl.float32)
            for i in range(0, d, BLOCK_D):
                at = i + tl.arange(0, BLOCK_D)
                gradient = tl.load(extra_w_dec + program * d + at, at < d, other=0.0)
                products += gradient * tl.load(w_dec + latent * d + at, at < d, other=0.0)
            tl.store(along + program, tl.sum(products))


def slots_of(extra: ExtraGradients, w_dec: Tensor, *, along: bool) -> Slots:
    """Find the slot of each latent.

    Args:
        extra: additional gradients.
        w_dec: [m, d] decoder rows.
        along: whether decoder gradients are multiplied by the decoder rows.

    Returns:
        Slot of each latent.
    """
    m, d = w_dec.shape
    count = extra.latents.shape[0]
    slots = Slots(
        torch.empty(m, dtype=torch.int64, device=w_dec.device), torch.empty_like(extra.b_enc)
    )
    block = 16 if interpreting() else 1024
    blocks = triton.cdiv(m, block)
    fill_slots[(max(blocks, count) if along else blocks,)](
        extra.latents,
        extra.w_dec,
        w_dec,
        *slots,
        m,
        count,
        d,
        ALONG=along,
        BLOCK=block,
        BLOCK_D=16 if interpreting() else min(power_of_two(d), 1024),
        num_warps=4,
        **LAUNCH,
    )
    return slots
