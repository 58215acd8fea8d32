"""Sums over the tokens on which each latent is active, in the order of the tokens."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .by_latent import ByLatent, sort_by_latent
from .device import LAUNCH, interpreting, power_of_two


@triton.jit
def sum_entries(
    values,
    entries,
    rows,
    begin,
    end,
    at,
    d,
    k,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum over entries begin : end of values[entry] * rows[entry // k, at]."""
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for e in range(begin, end, BLOCK_E):
        place = e + tl.arange(0, BLOCK_E)
        entry = tl.load(entries + place, place < end, other=0)
        value = tl.load(values + entry, place < end, other=0.0).to(tl.float32)
        token = entry // k
        inside = (place < end)[:, None] & (at < d)[None, :]
        block = tl.load(rows + token[:, None] * d + at[None, :], inside, other=0.0)
        sums += tl.sum(value[:, None] * block.to(tl.float32), axis=0)
    return sums


@triton.jit
def sum_pieces(
    values,
    entries,
    piece_begin,
    piece_end,
    rows,
    partial,
    d,
    k,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum of one piece of a latent with many entries into partial [pieces, d]."""
    piece = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(piece_begin + piece), tl.load(piece_end + piece)
    if begin < end:
        at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        sums = sum_entries(values, entries, rows, begin, end, at, d, k, BLOCK_E, BLOCK_D)
        tl.store(partial + piece * d + at, sums, at < d)


@triton.jit
def sum_of_latent(
    values,
    entries,
    start,
    piece_start,
    rows,
    partial,
    latent,
    at,
    d,
    k,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A latent's sum at the columns `at`: over its entries, or over its pieces in their order."""
    first, last = tl.load(piece_start + latent), tl.load(piece_start + latent + 1)
    if first == last:
        begin, end = tl.load(start + latent), tl.load(start + latent + 1)
        sums = sum_entries(values, entries, rows, begin, end, at, d, k, BLOCK_E, BLOCK_D)
    else:
        sums = tl.zeros((BLOCK_D,), tl.float32)
        for piece in range(first, last):
            sums += tl.load(partial + piece * d + at, at < d, other=0.0)
    return sums


@triton.jit
def sum_latents(
    values,
    entries,
    start,
    piece_start,
    rows,
    partial,
    sums,
    d,
    k,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sums[latent] over all entries of every latent; zero where there are none."""
    latent = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = sum_of_latent(
        values, entries, start, piece_start, rows, partial, latent, at, d, k, BLOCK_E, BLOCK_D
    )
    tl.store(sums + latent * d + at, total.to(sums.dtype.element_ty), at < d)


def partial_sums(values: Tensor, by_latent: ByLatent, rows: Tensor, k: int) -> Tensor:
    """[pieces, d] sums of the pieces of latents with many entries."""
    pieces, d = by_latent.piece_begin.shape[0], rows.shape[1]
    partial = torch.empty(pieces, d, dtype=torch.float32, device=rows.device)
    block_e, block_d = entry_blocks(d)
    if pieces:
        sum_pieces[(pieces, triton.cdiv(d, block_d))](
            values,
            by_latent.entry,
            by_latent.piece_begin,
            by_latent.piece_end,
            rows,
            partial,
            d,
            k,
            BLOCK_E=block_e,
            BLOCK_D=block_d,
            num_warps=4,
            **LAUNCH,
        )
    return partial


def latent_sum(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """[latents, d] of a checked, contiguous code in float32 or bfloat16."""
    d, k = rows.shape[1], indices.shape[1]
    sums = rows.new_empty(latents, d)
    # Zeros that fill a code up all name latent 0: they would be summed, piece after piece.
    by_latent = sort_by_latent(torch.where(values == 0, latents, indices), latents)
    partial = partial_sums(values, by_latent, rows, k)
    block_e, block_d = entry_blocks(d)
    if sums.numel():
        sum_latents[(latents, triton.cdiv(d, block_d))](
            values,
            by_latent.entry,
            by_latent.start,
            by_latent.piece_start,
            rows,
            partial,
            sums,
            d,
            k,
            BLOCK_E=block_e,
            BLOCK_D=block_d,
            num_warps=4,
            **LAUNCH,
        )
    return sums


def entry_blocks(d: int) -> tuple[int, int]:
    """How many entries, and how much of their width, a program of these sums holds at once."""
    return (4, min(power_of_two(d), 16)) if interpreting() else (4, min(power_of_two(d), 1024))
