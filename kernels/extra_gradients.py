"""Gradients of some latents that come from elsewhere, found by the latent they belong to."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two


class Extra(NamedTuple):
    """Gradients of the latents of some slots, added to those of the data.

    A slot whose latent is out of range stands for none; its gradients are never read.
    """

    latents: Tensor
    """[c] int64; each latent in range at most once"""
    w_enc: Tensor
    """[c, d]"""
    b_enc: Tensor
    """[c]"""
    w_dec: Tensor
    """[c, d_out]"""


class Slots(NamedTuple):
    """The slots of `Extra` by latent."""

    of_latent: Tensor
    """[m] int64: the slot of each latent, -1 for none"""
    along: Tensor
    """[c] the product of each slot's decoder gradient with the decoder row; unset without a latent,
    or where it was not asked for"""


@triton.jit
def fill_slots(
    extra_latents,
    extra_w_dec,
    w_dec,
    slots,
    along,
    latents,
    d,
    ALONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Enter one slot under its latent; ALONG: multiply its decoder gradient by the decoder row."""
    slot = tl.program_id(0).to(tl.int64)
    latent = tl.load(extra_latents + slot)
    if (latent >= 0) & (latent < latents):
        tl.store(slots + latent, slot)
        if ALONG:
            lane = tl.arange(0, BLOCK)
            products = tl.zeros((BLOCK,), tl.float32)
            for i in range(0, d, BLOCK):
                at = i + lane
                gradient = tl.load(extra_w_dec + slot * d + at, at < d, other=0.0)
                products += gradient * tl.load(w_dec + latent * d + at, at < d, other=0.0)
            tl.store(along + slot, tl.sum(products))


def slots_of(extra: Extra, w_dec: Tensor, *, along: bool) -> Slots:
    """Sort the slots by latent; `along`: multiply decoder gradients by the rows of w_dec [m, d]."""
    m, d = w_dec.shape
    slots = Slots(
        torch.full((m,), -1, dtype=torch.int64, device=w_dec.device), torch.empty_like(extra.b_enc)
    )
    c = extra.latents.shape[0]
    if c:
        fill_slots[(c,)](
            extra.latents,
            extra.w_dec,
            w_dec,
            *slots,
            m,
            d,
            ALONG=along,
            BLOCK=16 if interpreting() else min(power_of_two(d), 1024),
            num_warps=4,
            **LAUNCH,
        )
    return slots
