"""Sums over the tokens on which each latent is active, in the order of the tokens."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .by_latent import ByLatent, sort_by_latent
from .device import LAUNCH, interpreting, power_of_two


class Groups(NamedTuple):
    """Consecutive groups of latents, each of which sums over a matrix of rows of its own."""

    ends: Tensor
    """[g] int64: group i holds the latents from the end of the group before to below ends[i]"""
    indices: Tensor
    """[n, k] int64: the code's latents"""


@triton.jit
def group_of(latent, group_ends, groups):
    """The number of groups that end at or before `latent`; the last group where all do."""
    group = tl.full((), 0, tl.int64)
    for i in range(groups - 1):
        group += (latent >= tl.load(group_ends + i)).to(tl.int64)
    return group


@triton.jit
def sum_entries(
    values,
    entries,
    rows,
    begin,
    end,
    first_row,
    at,
    d,
    k,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum over entries begin : end of values[entry] * rows[first_row + entry // k, at]."""
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for e in range(begin, end, BLOCK_E):
        place = e + tl.arange(0, BLOCK_E)
        entry = tl.load(entries + place, place < end, other=0)
        value = tl.load(values + entry, place < end, other=0.0).to(tl.float32)
        row = first_row + (entry // k).to(tl.int64)
        inside = (place < end)[:, None] & (at < d)[None, :]
        rows_at = rows + row[:, None] * d + at[None, :]
        block = tl.load(rows_at, inside, other=0.0, eviction_policy="evict_last")
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
    indices,
    group_ends,
    groups,
    n,
    d,
    k,
    GROUPED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum of one piece of a latent with many entries into partial [pieces, d]."""
    piece = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(piece_begin + piece), tl.load(piece_end + piece)
    if begin < end:
        first_row = tl.zeros_like(begin)
        if GROUPED:
            latent = tl.load(indices + tl.load(entries + begin))
            first_row = group_of(latent, group_ends, groups) * n
        at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        sums = sum_entries(values, entries, rows, begin, end, first_row, at, d, k, BLOCK_E, BLOCK_D)
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
    first_row,
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
        sums = sum_entries(values, entries, rows, begin, end, first_row, at, d, k, BLOCK_E, BLOCK_D)
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
        values, entries, start, piece_start, rows, partial, latent, 0, at, d, k, BLOCK_E, BLOCK_D
    )
    tl.store(sums + latent * d + at, total.to(sums.dtype.element_ty), at < d)


def partial_sums(
    values: Tensor, by_latent: ByLatent, rows: Tensor, k: int, groups: Groups | None = None
) -> Tensor:
    """Sum the pieces of latents with many entries.

    `rows` is [n, d], or [g, n, d] with `groups`. Returns [pieces, d].
    """
    pieces = by_latent.piece_begin.shape[0]
    n, d = rows.shape[-2:]
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
            groups.indices if groups else values,
            groups.ends if groups else values,
            len(groups.ends) if groups else 1,
            n,
            d,
            k,
            GROUPED=groups is not None,
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
