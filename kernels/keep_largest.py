"""Of every row the k largest scores, all others set to zero: which dead latents are active."""

import triton
import triton.language as tl
from torch import Tensor

from .bfloat16_parts import empty_parts, store_parts, tile, wide
from .device import LAUNCH, interpreting, power_of_two, programs_at_once, thread_registers
from .keys import ordered

NOT_A_NUMBER = tl.constexpr(0x7FFFFFFE)
"""What stands for NaN among the ordered scores: above infinity, and below the largest integer."""


@triton.jit
def orders_at(scores, start, columns, BLOCK: tl.constexpr):
    """Return the ordered scores of a row from `start` on; that of -infinity behind `columns`."""
    at = start + tl.arange(0, BLOCK)
    score = tl.load(scores + at, at < columns, other=float("-inf"))
    return tl.minimum(ordered(score), NOT_A_NUMBER)


@triton.jit
def stays(order, start, lowest, end, BLOCK: tl.constexpr):
    """Return which scores are above `lowest`, or equal to it and in a column before `end`."""
    at = start + tl.arange(0, BLOCK)
    return (order > lowest) | ((order == lowest) & (at < end))


@triton.jit
def count_stays(order, scores, columns, lowest, end, LOADED: tl.constexpr, BLOCK: tl.constexpr):
    """Return how many scores of a row stay; LOADED: `order` holds all of them."""
    if LOADED:
        count = tl.sum(stays(order, 0, lowest, end, BLOCK).to(tl.int32))
    else:
        count = tl.zeros((), tl.int32)
        for start in range(0, columns, BLOCK):
            block = orders_at(scores, start, columns, BLOCK)
            count += tl.sum(stays(block, start, lowest, end, BLOCK).to(tl.int32))
    return count


@triton.jit
def bisect(order, scores, columns, k, lowest, LOADED: tl.constexpr, BLOCK: tl.constexpr):
    """Return the ordered score and the end of columns for which k scores stay, or fewer at first.

    Scores are bisected, and if several are equal to the k-th, the columns of those.
    """
    reached = count_stays(order, scores, columns, lowest, columns, LOADED, BLOCK)
    high = tl.full((), 0x7FFFFFFF, tl.int32)
    while (reached > k) & (lowest + 1 < high):
        middle = (lowest & high) + ((lowest ^ high) >> 1)
        above = count_stays(order, scores, columns, middle, columns, LOADED, BLOCK)
        if above >= k:
            lowest = middle
            reached = above
        else:
            high = middle
    begin = tl.zeros((), tl.int32)
    end = begin + columns
    while (reached > k) & (begin + 1 < end):
        middle = (begin + end) // 2
        before = count_stays(order, scores, columns, lowest, middle, LOADED, BLOCK)
        if before >= k:
            end = middle
            reached = before
        else:
            begin = middle
    return lowest, end


@triton.jit
def store_kept(
    order, start, width, kept, plane, lowest, end, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Store the scores that stay, and zeros for the others, up to `width`."""
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    score = bits.to(tl.float32, bitcast=True)
    score = tl.where(stays(order, start, lowest, end, BLOCK), score, 0.0)
    at = start + tl.arange(0, BLOCK)
    store_parts(kept, plane, at, score, at < width, PARTS)


@triton.jit(do_not_specialize=["rows", "k"])
def keep_largest_of_row(
    scores,
    kept,
    count,
    rows,
    padded_rows,
    places,
    k,
    SIGNED: tl.constexpr,
    MAY_EXCEED: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Keep the k largest of the first `count` scores of a row; see `keep_largest`.

    A row of up to BLOCK scores is read once and bisected in registers. MAY_EXCEED: longer ones are
    possible; they are read some thirty times, while they are in the L2 cache.
    """
    dead = tl.load(count)
    width = tl.cdiv(dead, TILE) * TILE
    plane = wide(padded_rows) * places
    for row in range(tl.program_id(0), tl.where(dead > 0, padded_rows, 0), tl.num_programs(0)):
        scores_at = scores + wide(row) * places
        kept_at = kept + wide(row) * places
        columns = tl.where(wide(row) < rows, dead, 0)
        if SIGNED:
            lowest = ordered(tl.full((), float("-inf"), tl.float32)) + 1
        else:
            lowest = tl.full((), 1, tl.int32)
        if (columns > k) & (columns <= BLOCK):
            order = orders_at(scores_at, 0, columns, BLOCK)
            lowest, end = bisect(order, scores_at, columns, k, lowest, True, BLOCK)
            store_kept(order, 0, width, kept_at, plane, lowest, end, PARTS, BLOCK)
        else:
            end = columns
            if MAY_EXCEED and columns > k:
                lowest, end = bisect(lowest, scores_at, columns, k, lowest, False, CHUNK)
            for start in range(0, width, CHUNK):
                order = orders_at(scores_at, start, columns, CHUNK)
                store_kept(order, start, width, kept_at, plane, lowest, end, PARTS, CHUNK)


def keep_largest(
    scores: Tensor, count: Tensor, n: int, k: int, *, signed: bool, parts: int
) -> Tensor:
    """Return `reference.keep_largest` of the scores of dead latents, as bfloat16 parts.

    Args:
        scores: float32 of whole tiles [rows, places], of which the first n rows and the first
            `count` columns are looked at.
        count: int32 [1] on the device.
        n: the number of tokens.
        k: how many scores of a row stay.
        signed: whether negative scores may stay.
        parts: one for scores rounded to bfloat16, three for all of float32.

    Returns:
        [parts, rows, places] with zeros for all other scores of the tiles that hold the first
        `count` columns. Columns behind these tiles are not written.
    """
    rows, places = scores.shape
    kept = empty_parts(parts, rows, places, scores)
    block = min(power_of_two(places), 32 if interpreting() else 16384)
    keep_largest_of_row[(programs_at_once(scores),)](
        scores,
        kept,
        count,
        n,
        rows,
        places,
        k,
        SIGNED=signed,
        MAY_EXCEED=places > block,
        PARTS=parts,
        TILE=tile(),
        BLOCK=block,
        CHUNK=min(block, 16 if interpreting() else 2048),
        num_warps=min(max(block // 1024, 4), 16),
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
    return kept
