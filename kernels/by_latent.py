"""The entries of a sparse code sorted by latent, with long runs cut into pieces of one length.

Everything has a size that is known beforehand, so that nothing waits for the GPU. A stable sort
and a fixed cut make every sum over a latent's tokens the same sum in every run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting

PIECE = 512
"""Entries in a piece; latents with more are summed in two passes."""


class ByLatent(NamedTuple):
    """Entries in the order of their latents, and within a latent of their tokens."""

    entry: Tensor
    """[n k] int32 or int64: the position in the code"""
    start: Tensor
    """[m + 1] int64: where the entries of each latent begin"""
    piece_start: Tensor
    """[m + 1] int64: where the pieces of each latent begin; only latents that are cut have any"""
    piece_begin: Tensor
    """[pieces] int64: where each piece begins and ends; those that there might have been are
    empty"""
    piece_end: Tensor


@triton.jit
def latent_keys(
    indices, values, keys, entries, latents, POSITIVE: tl.constexpr, BLOCK: tl.constexpr
):
    """The latents of BLOCK entries as 32-bit keys.

    POSITIVE: entries whose value is not positive get the key `latents`, that of no latent.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(indices + at, at < entries, other=0).to(tl.int32)
    if POSITIVE:
        key = tl.where(tl.load(values + at, at < entries, other=0.0) > 0, key, latents)
    tl.store(keys + at, key, at < entries)


@triton.jit
def first_at_least(ordered, entries, bound, steps):
    """The number of sorted keys below each `bound`; `steps` halvings leave one place."""
    low = tl.zeros_like(bound).to(tl.int64)
    high = low + entries
    for _ in range(steps):
        middle = (low + high) // 2
        # Where low and high have met, middle may be the end of the keys.
        below = tl.load(ordered + middle, low < high, other=0) < bound
        low, high = tl.where(below & (low < high), middle + 1, low), tl.where(below, high, middle)
    return low


@triton.jit
def pieces_of(count, PIECE: tl.constexpr):
    """The number of pieces of a latent with `count` entries; none if one program sums them all."""
    return tl.where(count > PIECE, (count + (PIECE - 1)) // PIECE, 0)


@triton.jit
def find_starts(
    ordered,
    start,
    block_pieces,
    entries,
    latents,
    steps,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The starts of BLOCK latents, [latents + 1] in all, and the sum of their pieces."""
    block = tl.program_id(0)
    latent = block * BLOCK + tl.arange(0, BLOCK)
    begin = first_at_least(ordered, entries, latent, steps)
    end = first_at_least(ordered, entries, latent + 1, steps)
    tl.store(start + latent, begin, latent <= latents)
    pieces = tl.where(latent < latents, pieces_of(end - begin, PIECE), 0)
    tl.store(block_pieces + block, tl.sum(pieces))


@triton.jit
def find_pieces(
    start,
    block_pieces,
    piece_start,
    piece_begin,
    piece_end,
    latents,
    blocks,
    room,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The pieces of BLOCK latents; a share of the `room` for pieces that nothing fills is empty."""
    block = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int64)
    total = tl.zeros((BLOCK,), tl.int64)
    for i in range(0, blocks, BLOCK):
        pieces = tl.load(block_pieces + i + lane, i + lane < blocks, other=0)
        before += tl.where(i + lane < block, pieces, 0)
        total += pieces
    used = tl.sum(total)

    latent = block * BLOCK + lane
    begin = tl.load(start + latent, latent < latents, other=0)
    end = tl.load(start + latent + 1, latent < latents, other=0)
    pieces = pieces_of(end - begin, PIECE)
    first = tl.sum(before) + tl.cumsum(pieces, 0) - pieces
    tl.store(piece_start + latent, first, latent <= latents)
    for i in range(tl.max(pieces)):
        tl.store(piece_begin + first + i, begin + i * PIECE, i < pieces)
        tl.store(piece_end + first + i, tl.minimum(begin + (i + 1) * PIECE, end), i < pieces)

    all_entries = tl.load(start + latents)
    for i in range(block * BLOCK, room, blocks * BLOCK):
        empty = (i + lane >= used) & (i + lane < room)
        tl.store(piece_begin + i + lane, all_entries, empty)
        tl.store(piece_end + i + lane, all_entries, empty)


def sort_by_latent(
    indices: Tensor, latents: int, piece: int = PIECE, *, values: Tensor | None = None
) -> ByLatent:
    """Sort a code's [n, k] indices, all in [0, latents].

    Entries of index `latents` belong to no latent, nor do those whose value is not positive where
    the code's `values` [n, k] are given. `indices` and `values` are contiguous.
    """
    entries, device = indices.numel(), indices.device
    keys = torch.empty(entries, dtype=torch.int32, device=device)
    block = 16 if interpreting() else 256
    if entries:
        latent_keys[(triton.cdiv(entries, 4 * block),)](
            indices,
            indices if values is None else values,
            keys,
            entries,
            latents,
            POSITIVE=values is not None,
            BLOCK=4 * block,
            num_warps=4,
            **LAUNCH,
        )
    ordered, entry = torch.sort(keys, stable=True)
    # A latent that is cut has more than `piece` entries and at most twice entries / piece pieces.
    room = 2 * entries // piece
    start, piece_start = (entry.new_empty(latents + 1) for _ in range(2))
    piece_begin, piece_end = (entry.new_empty(room) for _ in range(2))
    blocks = latents // block + 1
    block_pieces = entry.new_empty(blocks)
    find_starts[(blocks,)](
        ordered,
        start,
        block_pieces,
        entries,
        latents,
        entries.bit_length(),
        PIECE=piece,
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
    find_pieces[(blocks,)](
        start,
        block_pieces,
        piece_start,
        piece_begin,
        piece_end,
        latents,
        blocks,
        room,
        PIECE=piece,
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
    return ByLatent(entry, start, piece_start, piece_begin, piece_end)
