"""Per row, the columns that may still be among the k best: a list that grows and is cut again.

A row's state is a list of keys of what each score can at most be, how many they are, and a floor:
k scores of the list are certainly at least that. Columns come in ascending order, so one that
cannot rise above the floor is beaten by k others, even where it equals them.
"""

import triton
import triton.language as tl

from .keys import index_of, key_of, score_of

LONGEST_PIECE = tl.constexpr(4096)
"""The most keys of a list that are moved at a time"""
OVERFLOW = tl.constexpr(-1)
"""The count of a row whose list is too short for it: its columns are all scored exactly later."""


@triton.jit
def doubt_of(index, used, row, reach, spread, norm, lost):
    """How far a score of this row and column can be from its screening product."""
    doubt = tl.load(reach + row) * tl.load(norm + index, used, other=0.0)
    return doubt + tl.load(spread + row) * tl.load(lost + index, used, other=0.0)


@triton.jit
def least(keys, used, row, shift, norm, lost, reach, spread, BOUNDED: tl.constexpr):
    """The keys of what each score is at least; `keys` say what it is at most."""
    if BOUNDED:
        index = tl.where(used, index_of(keys), 0)
        doubt = 2.0 * doubt_of(index, used, row, reach, spread, norm, lost)
        # Twice the 2^-20 by which `shift` was raised for the roundings of the bias, and some.
        doubt += 2.0**-18 * tl.abs(tl.load(shift + index, used, other=0.0))
        keys = key_of(score_of(keys) - doubt, index)
    return keys


@triton.jit
def cut_list(
    list_at,
    count,
    floor_key,
    row,
    shift,
    norm,
    lost,
    reach,
    spread,
    k,
    BOUNDED: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Raise the floor as far as the list allows and drop what lies below; count must be >= k."""
    place = tl.arange(0, CAPACITY)
    used = place < count
    tl.debug_barrier()  # the list was written by other threads of this program
    keys = tl.load(list_at + place, used, other=-(2**63))
    certain = least(keys, used, row, shift, norm, lost, reach, spread, BOUNDED)
    low = tl.maximum(floor_key, tl.min(tl.where(used, certain, 2**63 - 1)))
    certain = tl.where(used, certain, -(2**63))  # below any middle
    high = tl.max(certain) + 1
    above = tl.sum((certain >= low).to(tl.int32))
    # A floor with a few more than k above it serves as well; exactly k is where this must end.
    while (above > k + k // 4) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)
        reached = tl.sum((certain >= middle).to(tl.int32))
        if reached >= k:
            low = middle
            above = reached
        else:
            high = middle
    # Read again piece by piece: the longest lists and their places fit no program's registers.
    PIECE: tl.constexpr = CAPACITY if CAPACITY < LONGEST_PIECE else LONGEST_PIECE
    lane = tl.arange(0, PIECE)
    total = 0
    for start in tl.static_range(0, CAPACITY, PIECE):
        keys = tl.load(list_at + start + lane, start + lane < count, other=-(2**63))
        kept = (start + lane < count) & (keys >= low)
        after = total + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.debug_barrier()  # keys move to places that all threads have read
        tl.store(list_at + after, keys, mask=kept)
        total += tl.sum(kept.to(tl.int32))
    return total, low


@triton.jit
def list_hot(maxima, hot_list, row, groups, bar, BLOCK: tl.constexpr):
    """The groups of a row whose maximum is above `bar`, in order, all if it is NaN; how many."""
    lane = tl.arange(0, BLOCK)
    hot = 0
    for start in range(0, groups, BLOCK):
        group = start + lane
        real = group < groups
        largest = tl.load(maxima + row * groups + group, real, other=float("-inf"))
        is_hot = real & ~(largest <= bar)
        after = hot + tl.cumsum(is_hot.to(tl.int32), 0) - 1
        tl.store(hot_list + row * groups + after, group, mask=is_hot)
        hot += tl.sum(is_hot.to(tl.int32))
    tl.debug_barrier()  # other threads of this program read the list
    return hot


@triton.jit(do_not_specialize=["k"])
def keep_best(
    scores,
    maxima,
    hot_list,
    shift,
    norm,
    lost,
    reach,
    spread,
    keys,
    counts,
    floor_keys,
    floor,
    first,
    columns,
    width,
    k,
    HOT: tl.constexpr,
    BOUNDED: tl.constexpr,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Feed the columns first : first + columns of one row to its list.

    HOT: only the groups that `hot_groups` stored, biased already; `hot_list` is scratch. Otherwise
    every column of `scores` [rows, width], without the bias.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    if count != OVERFLOW:
        floor_key = tl.load(floor_keys + row)
        bar = tl.load(floor + row)
        list_at = keys + row * CAPACITY
        lane = tl.arange(0, BLOCK)
        work = columns
        if HOT:
            groups = width // GROUP
            work = list_hot(maxima, hot_list, row, groups, bar, BLOCK) * GROUP
        grown = False
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
            if BOUNDED:
                most += doubt_of(first + column, real, row, reach, spread, norm, lost)
            passes = real & (most > bar)
            passing = tl.sum(passes.to(tl.int32))
            if (passing > 0) & (count != OVERFLOW):
                after = count + tl.cumsum(passes.to(tl.int32), 0) - 1
                tl.store(list_at + after, key_of(most, first + column), mask=passes)
                count += passing
                grown = True
                if count > CAPACITY - BLOCK:
                    count, floor_key = cut_list(
                        list_at,
                        count,
                        floor_key,
                        row,
                        shift,
                        norm,
                        lost,
                        reach,
                        spread,
                        k,
                        BOUNDED,
                        CAPACITY,
                    )
                    bar = score_of(floor_key)
                    if count > CAPACITY - BLOCK:
                        count = OVERFLOW
                        bar = float("inf")
        if grown & (count >= k + k // 4):
            count, floor_key = cut_list(
                list_at,
                count,
                floor_key,
                row,
                shift,
                norm,
                lost,
                reach,
                spread,
                k,
                BOUNDED,
                CAPACITY,
            )
            bar = score_of(floor_key)
        tl.store(counts + row, count)
        tl.store(floor_keys + row, floor_key)
        tl.store(floor + row, bar)
