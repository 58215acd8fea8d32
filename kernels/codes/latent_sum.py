"""Sum rows over the tokens on which each latent is active, in the order of the tokens."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, power_of_two
from .by_latent import ByLatent, sort_by_latent


class Groups(NamedTuple):
    """Consecutive groups of latents, each of which sums the rows of its own matrix."""

    ends: Tensor
    """[g] int64, ends of the groups: latents from ends[i - 1] up to, not including, ends[i]"""
    indices: Tensor
    """[n, k] int64, latents of the code"""


@triton.jit
def group_of(latent, group_ends, groups):
    """Return the group of `latent`: the first whose end exceeds it, or else the last."""
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
    """Sum values[entry] * rows[first_row + entry // k, at] over the sorted entries begin : end.

    Args:
        values: [n, k] values of a code.
        entries: [n * k] positions in the code, sorted by latent.
        rows: [., d] rows.
        begin: first of the entries.
        end: end of the entries.
        first_row: row of `rows` that token 0 has.
        at: [BLOCK_D] columns.
        d: width.
        k: entries per token.
        BLOCK_E: entries per iteration.
        BLOCK_D: number of columns.

    Returns:
        [BLOCK_D] float32.
    """
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
    """Sum one piece of a latent with many entries, for BLOCK_D columns.

    Args:
        values: [n, k] values of a code.
        entries: [n * k] positions in the code, sorted by latent.
        piece_begin: [pieces] int64, see `ByLatent`.
        piece_end: [pieces] int64, see `ByLatent`.
        rows: [n, d], or [groups, n, d] if GROUPED.
        partial: [pieces, d] float32 output; unused pieces are not written.
        indices: [n, k] int64, latents of the code, if GROUPED.
        group_ends: [groups] int64, see `Groups`, if GROUPED.
        groups: number of groups.
        n: number of tokens.
        d: width.
        k: entries per token.
        GROUPED: whether each group sums the rows of its own matrix.
        BLOCK_E: entries per iteration.
        BLOCK_D: columns per program.
    """
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
    """Return a latent's sum at the columns `at`: over its entries, or over its pieces in order.

    Args:
        values: [n, k] values of a code.
        entries: [n * k] positions in the code, sorted by latent.
        start: [m + 1] int64, see `ByLatent`.
        piece_start: [m + 1] int64, see `ByLatent`.
        rows: [., d] rows.
        partial: [pieces, d] float32, from `sum_pieces`.
        latent: the latent.
        first_row: row of `rows` that token 0 has.
        at: [BLOCK_D] columns.
        d: width.
        k: entries per token.
        BLOCK_E: entries per iteration.
        BLOCK_D: number of columns.

    Returns:
        [BLOCK_D] float32, zero if the latent has no entries.
    """
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
    """Sum all entries of one latent, for BLOCK_D columns.

    Args:
        values: see `sum_of_latent`, as the next five.
        entries: [n * k] int64.
        start: [m + 1] int64.
        piece_start: [m + 1] int64.
        rows: [n, d].
        partial: [pieces, d] float32.
        sums: [m, d] output.
        d: width.
        k: entries per token.
        BLOCK_E: entries per iteration.
        BLOCK_D: columns per program.
    """
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

    Args:
        values: [n, k] values of the code.
        by_latent: its entries, sorted.
        rows: [n, d], or [g, n, d] with `groups`.
        k: entries per token.
        groups: groups of latents; None: all latents sum the same rows.

    Returns:
        [pieces, d] float32; unused pieces are uninitialised.
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
    """Sum values[i, c] * rows[i] over the entries of each latent, as [latents, d].

    Args:
        values: [n, k] float32 or bfloat16, contiguous.
        indices: [n, k] int64, contiguous.
        rows: [n, d] of the same dtype, contiguous.
        latents: number of latents.

    Returns:
        [latents, d] sums, in the dtype of `rows`.
    """
    d, k = rows.shape[1], indices.shape[1]
    sums = rows.new_empty(latents, d)
    # Padding of a code has index 0: it would be summed, piece after piece.
    by_latent = sort_by_latent(indices, latents, values=values)
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
    """Return how many entries and how many columns a program of these sums holds at a time."""
    return (4, min(power_of_two(d), 16)) if interpreting() else (4, min(power_of_two(d), 1024))
