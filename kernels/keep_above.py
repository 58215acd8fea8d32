"""Per row, the columns whose score is above its threshold: who may be waits, who is becomes a key.

A row's list holds `held` keys of exact scores, then `waiting` columns that the screen could not
rule out. Columns are scored when the list is full and in the end; `counts` tells how many were
above, also where the list had no room for all and kept the best.
"""

import triton
import triton.language as tl

from .exact_scores import exact_scores
from .keep_best import doubt_of, list_hot
from .keys import EMPTY, index_of, key_of


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
    """Score the columns that wait; how many keys there are then."""
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
        tl.debug_barrier()  # keys take the places of columns that all threads have read
        tl.store(list_at + after, key_of(score, index), mask=above)
        held += tl.sum(above.to(tl.int32))
    tl.debug_barrier()
    return held


@triton.jit
def keep_most(list_at, held, room, BLOCK: tl.constexpr, CAPACITY: tl.constexpr, LOOK: tl.constexpr):
    """At least the `room` best of a row's keys, and half of what the list has beyond at most."""
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
        tl.debug_barrier()  # keys move to places that all threads have read
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
    """Feed the columns first : first + columns of one row to its list.

    `scores` are those of `keep_best`, less the thresholds; `floor` is 0, NaN for a row all of
    whose columns must be looked at, or infinity for a row none of whose columns is. A list keeps
    the `room` best; CAPACITY is more than that by BLOCK at least.
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
    if bar == float("inf"):  # NaN is not above it either
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
            tl.store(list_at + after, key_of(tl.zeros_like(most), first + column), mask=passes)
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
    """Score what still waits in a row's list."""
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
