"""Keep, for each row, the columns whose score is above their threshold.

A row's list holds `held` keys of exact scores above their thresholds, followed by `waiting` keys of
columns that the screen could not rule out, which contain upper bounds of score less threshold. The
waiting columns are scored when the list is full and at the end. `counts` is the number of columns
above their thresholds, even if the list had no room for all of them and kept the best.
"""

import triton
import triton.language as tl

from ..keys import EMPTY, index_of, key_of
from .exact_scores import exact_scores
from .keep_best import doubt_of, list_hot


@triton.jit
def settle(
    list_at,
    held,
    waiting,
    row,
    x,
    weight,
    bias,
    scale,
    threshold,
    d,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Score the waiting columns of a list, and keep those above their thresholds.

    Args:
        list_at: address of the row's list.
        held: number of keys of exact scores.
        waiting: number of columns after them.
        row: int64, the row.
        x: [n, d] rows.
        weight: [m, d] rows.
        bias: [m], if BIASED.
        scale: [m], if SCALED.
        threshold: [m] float32.
        d: width.
        BIASED: whether there is a bias.
        SCALED: whether there is a scale.
        COLUMNS: see `exact_scores`.
        BLOCK_D: see `exact_scores`.

    Returns:
        The new number of keys; no column waits.
    """
    tl.debug_barrier()  # the list was written by other threads of this program
    lane = tl.arange(0, COLUMNS)
    end = held + waiting
    for start in range(held, end, COLUMNS):
        real = start + lane < end
        index = tl.where(real, index_of(tl.load(list_at + start + lane, real, other=0)), 0)
        score = exact_scores(
            x, weight, bias, scale, row, index, real, d, BIASED, SCALED, COLUMNS, BLOCK_D
        )
        above = real & (score > tl.load(threshold + index, real, other=float("inf")))
        after = held + tl.cumsum(above.to(tl.int32), 0) - 1
        tl.debug_barrier()  # keys overwrite columns, which all threads must have read
        tl.store(list_at + after, key_of(score, index), mask=above)
        held += tl.sum(above.to(tl.int32))
    tl.debug_barrier()
    return held


@triton.jit
def keep_most(list_at, held, room, BLOCK: tl.constexpr, CAPACITY: tl.constexpr, LOOK: tl.constexpr):
    """Drop low keys of a row's list, and return how many are left.

    At least the `room` best stay. Of the CAPACITY - BLOCK - room places beyond these, at most half
    stay occupied.

    Args:
        list_at: address of the row's list.
        held: number of keys, more than CAPACITY - BLOCK.
        room: number of keys wanted.
        BLOCK: columns that arrive at once.
        CAPACITY: length of the list.
        LOOK: keys per iteration.

    Returns:
        Number of keys left.
    """
    lane = tl.arange(0, LOOK)
    enough = (room + CAPACITY - BLOCK) // 2
    low = tl.full((), EMPTY, tl.int64)
    high = tl.full((), 2**63 - 1, tl.int64)
    above = held
    while above > enough:
        middle = (low & high) + ((low ^ high) >> 1)
        reached = 0
        for start in range(0, held, LOOK):
            key = tl.load(list_at + start + lane, start + lane < held, other=EMPTY)
            reached += tl.sum((key >= middle).to(tl.int32))
        if reached >= room:
            low = middle
            above = reached
        else:
            high = middle
    kept = 0
    for start in range(0, held, LOOK):
        key = tl.load(list_at + start + lane, start + lane < held, other=EMPTY)
        stays = (start + lane < held) & (key >= low)
        after = kept + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.debug_barrier()  # keys move to places, which all threads must have read
        tl.store(list_at + after, key, mask=stays)
        kept += tl.sum(stays.to(tl.int32))
    tl.debug_barrier()
    return kept


@triton.jit(do_not_specialize=["room"])
def keep_above(
    scores,
    maxima,
    hot_list,
    shift,
    norm,
    lost,
    reach,
    spread,
    floor,
    x,
    weight,
    bias,
    scale,
    threshold,
    keys,
    held,
    waiting,
    counts,
    first,
    columns,
    width,
    d,
    room,
    HOT: tl.constexpr,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    LOOK: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Append the columns first : first + columns of one row to its list; one program per row.

    Args:
        scores: [rows, width] float32, see `Screened`; shifts include the thresholds.
        maxima: [rows, width / GROUP] float32, see `Screened`, if HOT.
        hot_list: [rows, width / GROUP] int32 scratch, if HOT.
        shift: [m] float32, see `Bounds`.
        norm: [m] float32, see `Bounds`.
        lost: [m] float32, see `Bounds`.
        reach: [rows] float32, see `Bounds`.
        spread: [rows] float32, see `Bounds`.
        floor: [rows] float32: 0; NaN for a row whose columns must all be scored; infinity for a row
            of which none is.
        x: [rows, d] rows.
        weight: [m, d] rows.
        bias: [m], if BIASED.
        scale: [m], if SCALED.
        threshold: [m] float32.
        keys: [rows, CAPACITY] int64, lists, updated in place.
        held: [rows] int32, updated.
        waiting: [rows] int32, updated.
        counts: [rows] int32, updated.
        first: first column.
        columns: number of columns.
        width: row stride of `scores`.
        d: width of x.
        room: number of best columns that a list must keep.
        HOT: whether only hot groups were stored, see `Screened`.
        BIASED: whether there is a bias.
        SCALED: whether there is a scale.
        GROUP: columns per group.
        CAPACITY: length of a list, at least room + BLOCK.
        BLOCK: columns per iteration.
        LOOK: see `keep_most`.
        COLUMNS: see `exact_scores`.
        BLOCK_D: see `exact_scores`.
    """
    row = tl.program_id(0).to(tl.int64)
    bar = tl.load(floor + row)
    list_at = keys + row * CAPACITY
    has = tl.load(held + row)
    more = tl.load(waiting + row)
    found = tl.load(counts + row)
    lane = tl.arange(0, BLOCK)
    work = columns
    if HOT:
        groups = width // GROUP
        work = list_hot(maxima, hot_list, row, groups, bar, BLOCK) * GROUP
    if bar == float("inf"):  # otherwise a score of NaN would pass
        work = 0
    for start in range(0, work, BLOCK):
        at = start + lane
        real = at < work
        column = at
        if HOT:
            group = tl.load(hot_list + row * groups + at // GROUP, real, other=0)
            column = group * GROUP + at % GROUP
            real = real & (column < columns)
        most = tl.load(scores + row * width + column, real, other=float("-inf"))
        if not HOT:
            most += tl.load(shift + first + column, real, other=float("-inf"))
        most += doubt_of(first + column, real, row, reach, spread, norm, lost)
        passes = real & ~(most <= bar)
        passing = tl.sum(passes.to(tl.int32))
        if passing > 0:
            if has + more > CAPACITY - BLOCK:
                settled = settle(
                    list_at,
                    has,
                    more,
                    row,
                    x,
                    weight,
                    bias,
                    scale,
                    threshold,
                    d,
                    BIASED,
                    SCALED,
                    COLUMNS,
                    BLOCK_D,
                )
                found += settled - has
                has = settled
                more = 0
                if has > CAPACITY - BLOCK:
                    has = keep_most(list_at, has, room, BLOCK, CAPACITY, LOOK)
            after = has + more + tl.cumsum(passes.to(tl.int32), 0) - 1
            tl.store(list_at + after, key_of(most, first + column), mask=passes)
            more += passing
    tl.store(held + row, has)
    tl.store(waiting + row, more)
    tl.store(counts + row, found)


@triton.jit
def settle_lists(
    x,
    weight,
    bias,
    scale,
    threshold,
    keys,
    held,
    waiting,
    counts,
    d,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    CAPACITY: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Score the waiting columns of one row's list at the end; one program per row.

    Args:
        x: [rows, d] rows.
        weight: [m, d] rows.
        bias: [m], if BIASED.
        scale: [m], if SCALED.
        threshold: [m] float32.
        keys: [rows, CAPACITY] int64, lists, updated in place.
        held: [rows] int32, updated.
        waiting: [rows] int32.
        counts: [rows] int32, updated.
        d: width.
        BIASED: whether there is a bias.
        SCALED: whether there is a scale.
        CAPACITY: length of a list.
        COLUMNS: see `exact_scores`.
        BLOCK_D: see `exact_scores`.
    """
    row = tl.program_id(0).to(tl.int64)
    has = tl.load(held + row)
    settled = settle(
        keys + row * CAPACITY,
        has,
        tl.load(waiting + row),
        row,
        x,
        weight,
        bias,
        scale,
        threshold,
        d,
        BIASED,
        SCALED,
        COLUMNS,
        BLOCK_D,
    )
    tl.store(held + row, settled)
    tl.store(counts + row, tl.load(counts + row) + settled - has)
