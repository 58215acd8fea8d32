"""Sort the entries of a sparse code by latent, and cut long runs into pieces.

All sizes are known in advance, so the host does not wait for the GPU. The sort is stable and the
cut is fixed, so every sum over a latent's tokens has the same order in every run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting

PIECE = 512
"""maximum number of entries in a piece; latents with more entries are summed in two passes"""


class ByLatent(NamedTuple):
    """Entries of a code in the order of their latents, and of their tokens within a latent."""

    entry: Tensor
    """[n * k] int64, positions in the code; those of no latent come last"""
    start: Tensor
    """[m + 1] int64, where the entries of each latent begin"""
    piece_start: Tensor
    """[m + 1] int64, where the pieces of each latent begin; a latent with at most `PIECE` entries
    has none"""
    piece_begin: Tensor
    """[pieces] int64, first entry of each piece; unused pieces are empty"""
    piece_end: Tensor
    """[pieces] int64, end of the entries of each piece"""


@triton.jit
def latent_keys(
    indices,
    values,
    keys,
    entries,
    latents,
    FIRST_KEY: tl.constexpr,
    ACTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the latents of BLOCK entries as keys.

    Args:
        indices: [entries] int64, latents.
        values: [entries] values, if ACTIVE.
        keys: [entries] int16 or int32 output.
        entries: number of entries.
        latents: number of latents, which stands for the latent of entries that belong to none.
        FIRST_KEY: key of latent 0; those of the others follow.
        ACTIVE: whether entries with values of zero belong to no latent.
        BLOCK: entries per program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    latent = tl.load(indices + at, at < entries, other=0)
    # Indices out of range keep their side of the range.
    key = tl.minimum(tl.maximum(latent, -1), latents).to(tl.int32)
    if ACTIVE:
        key = tl.where(tl.load(values + at, at < entries, other=0.0) != 0, key, latents)
    tl.store(keys + at, (key + FIRST_KEY).to(keys.dtype.element_ty), at < entries)


@triton.jit
def first_at_least(ordered, entries, bound, steps):
    """Return the number of sorted keys below each `bound`, by binary search.

    Args:
        ordered: [entries] int16 or int32, ascending.
        entries: number of keys.
        bound: int32 tensor of bounds.
        steps: number of halvings that leave one place.
    """
    low = tl.zeros_like(bound).to(tl.int64)
    high = low + entries
    for _ in range(steps):
        middle = (low + high) // 2
        # If low equals high, middle may be the end of the keys.
        below = tl.load(ordered + middle, low < high, other=0).to(tl.int32) < bound
        low, high = tl.where(below & (low < high), middle + 1, low), tl.where(below, high, middle)
    return low


@triton.jit
def pieces_of(count, PIECE: tl.constexpr):
    """Return the number of pieces of latents with `count` entries, 0 for up to PIECE entries."""
    return tl.where(count > PIECE, (count + (PIECE - 1)) // PIECE, 0)


@triton.jit
def find_starts(
    ordered,
    start,
    block_pieces,
    entries,
    latents,
    steps,
    FIRST_KEY: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find where the entries of BLOCK latents start, and count their pieces.

    Args:
        ordered: [entries] int16 or int32, sorted keys of the entries.
        start: [latents + 1] int64 output.
        block_pieces: [programs] int64 output, number of pieces of the program's latents.
        entries: number of entries.
        latents: number of latents.
        steps: see `first_at_least`.
        FIRST_KEY: see `latent_keys`.
        PIECE: maximum number of entries in a piece.
        BLOCK: latents per program.
    """
    block = tl.program_id(0)
    latent = block * BLOCK + tl.arange(0, BLOCK)
    begin = first_at_least(ordered, entries, latent + FIRST_KEY, steps)
    end = first_at_least(ordered, entries, latent + (1 + FIRST_KEY), steps)
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
    """Write the pieces of BLOCK latents, and a share of the unused pieces as empty ones.

    Args:
        start: [latents + 1] int64, from `find_starts`.
        block_pieces: [blocks] int64, from `find_starts`.
        piece_start: [latents + 1] int64 output.
        piece_begin: [room] int64 output.
        piece_end: [room] int64 output.
        latents: number of latents.
        blocks: number of programs.
        room: maximum number of pieces.
        PIECE: maximum number of entries in a piece.
        BLOCK: latents per program.
    """
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
    """Sort the entries of a code by latent.

    Args:
        indices: [n, k] contiguous latents in [0, latents]; entries of index `latents` belong to
            none.
        latents: number of latents.
        piece: maximum number of entries in a piece.
        values: [n, k] contiguous values; entries that are zero belong to no latent. None:
            values do not matter.

    Returns:
        Entries in the order of latents, divided into pieces.
    """
    entries, device = indices.numel(), indices.device
    # A radix sort on the GPU takes one pass for each byte of a key.
    short = latents < 2**16 - 1  # and a key on either side of those of latents
    first_key = 1 - 2**15 if short else 0
    keys = torch.empty(entries, dtype=torch.int16 if short else torch.int32, device=device)
    block = 16 if interpreting() else 256
    if entries:
        latent_keys[(triton.cdiv(entries, 4 * block),)](
            indices,
            indices if values is None else values,
            keys,
            entries,
            latents,
            FIRST_KEY=first_key,
            ACTIVE=values is not None,
            BLOCK=4 * block,
            num_warps=4,
            **LAUNCH,
        )
    ordered, entry = torch.sort(keys, stable=True)
    # A latent that is cut has c > `piece` entries, and at most 2 c / `piece` pieces.
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
        FIRST_KEY=first_key,
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
