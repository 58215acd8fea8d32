"""Keep the k largest scores of every row and set the others to zero, for AuxK."""

import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, power_of_two, programs_at_once, thread_registers
from ..keys import ordered
from ..parts import empty_parts, store_parts, tile, wide
from .bounds import SCORES, multiplier_at

NOT_A_NUMBER = tl.constexpr(0x7FFFFFFE)
"""value of NaN among the ordered scores: above infinity, and below the largest integer"""


@triton.jit
def orders_at(scores, start, columns, ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the ordered scores of a row's columns start : start + BLOCK.

    If ABSOLUTE, these are the ordered absolute values, except that -infinity stays. Columns from
    `columns` on get the ordered -infinity.
    """
    at = start + tl.arange(0, BLOCK)
    score = tl.load(scores + at, at < columns, other=float("-inf"))
    if ABSOLUTE:
        score = tl.where(score == float("-inf"), score, tl.abs(score))
    return tl.minimum(ordered(score), NOT_A_NUMBER)


@triton.jit
def stays(order, start, lowest, end, BLOCK: tl.constexpr):
    """Return which scores exceed `lowest`, or equal it and are in a column before `end`."""
    at = start + tl.arange(0, BLOCK)
    return (order > lowest) | ((order == lowest) & (at < end))


@triton.jit
def count_stays(
    order,
    scores,
    columns,
    lowest,
    end,
    ABSOLUTE: tl.constexpr,
    LOADED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return how many scores of a row stay, see `stays`; LOADED: `order` holds all of them."""
    if LOADED:
        count = tl.sum(stays(order, 0, lowest, end, BLOCK).to(tl.int32))
    else:
        count = tl.zeros((), tl.int32)
        for start in range(0, columns, BLOCK):
            block = orders_at(scores, start, columns, ABSOLUTE, BLOCK)
            count += tl.sum(stays(block, start, lowest, end, BLOCK).to(tl.int32))
    return count


@triton.jit
def bisect(
    order,
    scores,
    columns,
    k,
    lowest,
    ABSOLUTE: tl.constexpr,
    LOADED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the bar `lowest` and the column `end` for which k scores stay, see `stays`.

    The value of the bar is bisected; then, if several scores equal it, the column. Fewer than k
    scores stay if fewer exceed the initial bar.

    Args:
        order: [BLOCK] ordered scores of the row, if LOADED.
        scores: address of the row's scores.
        columns: number of scores.
        k: number of scores to keep.
        lowest: int32 ordered score below which none stays.
        ABSOLUTE: see `orders_at`.
        LOADED: whether `order` holds the whole row; otherwise the row is read in every pass.
        BLOCK: scores per iteration.
    """
    reached = count_stays(order, scores, columns, lowest, columns, ABSOLUTE, LOADED, BLOCK)
    high = tl.full((), 0x7FFFFFFF, tl.int32)
    while (reached > k) & (lowest + 1 < high):
        middle = (lowest & high) + ((lowest ^ high) >> 1)
        above = count_stays(order, scores, columns, middle, columns, ABSOLUTE, LOADED, BLOCK)
        if above >= k:
            lowest = middle
            reached = above
        else:
            high = middle
    begin = tl.zeros((), tl.int32)
    end = begin + columns
    while (reached > k) & (begin + 1 < end):
        middle = (begin + end) // 2
        before = count_stays(order, scores, columns, lowest, middle, ABSOLUTE, LOADED, BLOCK)
        if before >= k:
            end = middle
            reached = before
        else:
            begin = middle
    return lowest, end


@triton.jit
def store_kept(
    order,
    scores,
    start,
    columns,
    width,
    kept,
    plane,
    lowest,
    end,
    multiplier,
    ABSOLUTE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the scores that stay, and zeros in place of the others, up to column `width`.

    Args:
        order: [BLOCK] ordered scores, see `orders_at`.
        scores: address of the row's scores, read for their sign if ABSOLUTE.
        start: column of the first.
        columns: number of scores.
        width: number of columns to write.
        kept: address of the row of the first part.
        plane: elements between consecutive parts.
        lowest: see `stays`.
        end: see `stays`.
        multiplier: see `store_parts`.
        ABSOLUTE: see `orders_at`.
        PARTS: 1 or 2.
        BLOCK: number of scores.
    """
    at = start + tl.arange(0, BLOCK)
    if ABSOLUTE:
        score = tl.load(scores + at, at < columns, other=0.0)
    else:
        bits = order ^ ((order >> 31) & 0x7FFFFFFF)
        score = bits.to(tl.float32, bitcast=True)
    score = tl.where(stays(order, start, lowest, end, BLOCK), score, 0.0)
    store_parts(kept, plane, at, score, multiplier, at < width, PARTS)


@triton.jit(do_not_specialize=["rows", "k"])
def keep_largest_of_row(
    scores,
    kept,
    count,
    largest,
    rows,
    padded_rows,
    places,
    k,
    SIGNED: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    MAY_EXCEED: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Keep the k largest of the first `count` scores of a row; programs share the rows.

    A row of up to BLOCK scores is read once and bisected in registers. A longer row is read about
    thirty times, while it is in the L2 cache.

    Args:
        scores: [padded_rows, places] float32.
        kept: [PARTS, padded_rows, places] output, see `keep_largest`.
        count: [1] int32, number of scores per row.
        largest: [kinds, programs], see `bounds`.
        rows: number of rows; zeros are stored for those beyond.
        padded_rows: rows of whole tiles.
        places: row stride, whole tiles.
        k: number of scores to keep.
        SIGNED: whether negative scores may stay.
        ABSOLUTE: whether scores are ranked by their absolute value, see `orders_at`.
        MAY_EXCEED: whether a row may have more than BLOCK scores.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK: maximum number of scores in registers.
        CHUNK: scores per iteration over a longer row.
        LANES: see `largest_of`.
    """
    dead = tl.load(count)
    width = tl.cdiv(dead, TILE) * TILE
    plane = wide(padded_rows) * places
    multiplier = multiplier_at(largest, SCORES, tl.num_programs(0), LANES, PARTS)
    for row in range(tl.program_id(0), tl.where(dead > 0, padded_rows, 0), tl.num_programs(0)):
        scores_at = scores + wide(row) * places
        kept_at = kept + wide(row) * places
        columns = tl.where(wide(row) < rows, dead, 0)
        if SIGNED:
            lowest = ordered(tl.full((), float("-inf"), tl.float32)) + 1
        else:
            lowest = tl.full((), 1, tl.int32)
        if (columns > k) & (columns <= BLOCK):
            order = orders_at(scores_at, 0, columns, ABSOLUTE, BLOCK)
            lowest, end = bisect(order, scores_at, columns, k, lowest, ABSOLUTE, True, BLOCK)
            store_kept(
                order,
                scores_at,
                0,
                columns,
                width,
                kept_at,
                plane,
                lowest,
                end,
                multiplier,
                ABSOLUTE,
                PARTS,
                BLOCK,
            )
        else:
            end = columns
            if MAY_EXCEED and columns > k:
                lowest, end = bisect(lowest, scores_at, columns, k, lowest, ABSOLUTE, False, CHUNK)
            for start in range(0, width, CHUNK):
                order = orders_at(scores_at, start, columns, ABSOLUTE, CHUNK)
                store_kept(
                    order,
                    scores_at,
                    start,
                    columns,
                    width,
                    kept_at,
                    plane,
                    lowest,
                    end,
                    multiplier,
                    ABSOLUTE,
                    PARTS,
                    CHUNK,
                )


def keep_largest(
    scores: Tensor,
    count: Tensor,
    largest: Tensor,
    n: int,
    k: int,
    *,
    signed: bool,
    absolute: bool = False,
    parts: int,
) -> Tensor:
    """Keep the k largest scores of dead latents, as `reference.keep_largest`, as parts.

    Args:
        scores: [rows, places] float32, whole tiles; the first n rows and `count` columns are read.
        count: [1] int32 on the device, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        n: number of tokens.
        k: number of scores to keep per row.
        signed: whether negative scores may stay.
        absolute: whether scores are ranked by their absolute value; needs `signed`.
        parts: 1: scores are rounded to bfloat16; 2: two parts of float16.

    Returns:
        [parts, rows, places], with zeros in place of all other scores in the tiles of the first
        `count` columns. Columns beyond these tiles are not written.
    """
    rows, places = scores.shape
    kept = empty_parts(parts, rows, places, scores)
    block = min(power_of_two(places), 32 if interpreting() else 16384)
    programs = programs_at_once(scores)
    keep_largest_of_row[(programs,)](
        scores,
        kept,
        count,
        largest,
        n,
        rows,
        places,
        k,
        SIGNED=signed,
        ABSOLUTE=absolute,
        MAY_EXCEED=places > block,
        PARTS=parts,
        TILE=tile(),
        BLOCK=block,
        CHUNK=min(block, 16 if interpreting() else 2048),
        LANES=power_of_two(programs),
        num_warps=min(max(block // 1024, 4), 16),
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
    return kept
