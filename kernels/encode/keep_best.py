"""Keep, for each row, the columns that may still be among its k best.

The state of a row is a list of keys, which contain upper bounds of scores, the length of the list,
and a floor that k scores of the list certainly reach. Columns come in ascending order, so a column
that cannot exceed the floor is beaten by k others, even if it equals them. A full list is cut: its
floor is raised and the keys below it are dropped.
"""

import triton
import triton.language as tl

from ..keys import index_of, key_of, score_of

LONGEST_PIECE = tl.constexpr(4096)
"""maximum number of a list's keys that are moved at a time"""
OVERFLOW = tl.constexpr(-1)
"""count of a row whose list was too short; all of its columns are scored exactly later"""


@triton.jit
def doubt_of(index, used, row, reach, spread, norm, lost):
    """Return the error bounds of scores of one row.

    Args:
        index: columns.
        used: which of them are wanted; others get an undefined bound.
        row: int64, the row.
        reach: [n] float32, see `Bounds`.
        spread: [n] float32, see `Bounds`.
        norm: [m] float32, see `Bounds`.
        lost: [m] float32, see `Bounds`.
    """
    doubt = tl.load(reach + row) * tl.load(norm + index, used, other=0.0)
    return doubt + tl.load(spread + row) * tl.load(lost + index, used, other=0.0)


@triton.jit
def least(keys, used, row, shift, norm, lost, reach, spread, BOUNDED: tl.constexpr):
    """Turn keys of upper bounds of scores into keys of lower bounds.

    Args:
        keys: keys of upper bounds.
        used: which of them are set.
        row: int64, the row.
        shift: [m] float32, see `Bounds`, as the next four.
        norm: [m] float32.
        lost: [m] float32.
        reach: [n] float32.
        spread: [n] float32.
        BOUNDED: whether keys contain bounds; otherwise scores are exact, and `keys` is returned.

    Returns:
        Keys of lower bounds.
    """
    if BOUNDED:
        index = tl.where(used, index_of(keys), 0)
        doubt = 2.0 * doubt_of(index, used, row, reach, spread, norm, lost)
        # More than twice the 2^-20 by which `shift` was raised for the rounding errors of the bias.
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
    """Raise the floor of a list as far as possible, and drop the keys below it.

    Args:
        list_at: address of the row's list.
        count: its length, at least k.
        floor_key: its floor.
        row: int64, the row.
        shift: see `least`, as the next four.
        norm: not read unless BOUNDED.
        lost: not read unless BOUNDED.
        reach: not read unless BOUNDED.
        spread: not read unless BOUNDED.
        k: number of keys that must stay above the floor.
        BOUNDED: see `least`.
        CAPACITY: power of two, maximum length of the list.

    Returns:
        The new length and the new floor.
    """
    place = tl.arange(0, CAPACITY)
    used = place < count
    tl.debug_barrier()  # the list was written by other threads of this program
    keys = tl.load(list_at + place, used, other=-(2**63))
    certain = least(keys, used, row, shift, norm, lost, reach, spread, BOUNDED)
    low = tl.maximum(floor_key, tl.min(tl.where(used, certain, 2**63 - 1)))
    certain = tl.where(used, certain, -(2**63))  # below any middle
    high = tl.max(certain) + 1
    above = tl.sum((certain >= low).to(tl.int32))
    # A floor that a few more than k keys reach serves as well, and takes fewer passes. Keys are
    # distinct, so exactly k are reachable.
    while (above > k + k // 4) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)
        reached = tl.sum((certain >= middle).to(tl.int32))
        if reached >= k:
            low = middle
            above = reached
        else:
            high = middle
    # The keys are read again, piece by piece: the longest lists and their places do not fit a
    # program's registers.
    PIECE: tl.constexpr = CAPACITY if CAPACITY < LONGEST_PIECE else LONGEST_PIECE
    lane = tl.arange(0, PIECE)
    total = 0
    for start in tl.static_range(0, CAPACITY, PIECE):
        keys = tl.load(list_at + start + lane, start + lane < count, other=-(2**63))
        kept = (start + lane < count) & (keys >= low)
        after = total + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.debug_barrier()  # keys move to places, which all threads must have read
        tl.store(list_at + after, keys, mask=kept)
        total += tl.sum(kept.to(tl.int32))
    return total, low


@triton.jit
def list_hot(maxima, hot_list, row, groups, bar, BLOCK: tl.constexpr):
    """List the groups of a row whose maximum exceeds `bar`, in order; return how many there are.

    Args:
        maxima: [rows, groups] float32, see `Screened`.
        hot_list: [rows, groups] int32 output.
        row: int64, the row.
        groups: number of groups.
        bar: float32 floor of the row; if it is NaN, all groups are listed.
        BLOCK: groups per iteration.

    Returns:
        Number of listed groups.
    """
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
    """Append the columns first : first + columns of one row to its list; one program per row.

    Args:
        scores: [rows, width] float32, see `Screened`.
        maxima: [rows, width / GROUP] float32, see `Screened`, if HOT.
        hot_list: [rows, width / GROUP] int32 scratch, if HOT.
        shift: [m] float32, see `Bounds`.
        norm: [m] float32, see `Bounds`.
        lost: [m] float32, see `Bounds`.
        reach: [rows] float32, see `Bounds`.
        spread: [rows] float32, see `Bounds`.
        keys: [rows, CAPACITY] int64, lists, updated in place; see `Lists`, as the next three.
        counts: [rows] int32, updated.
        floor_keys: [rows] int64, updated.
        floor: [rows] float32, updated.
        first: first column.
        columns: number of columns.
        width: row stride of `scores`.
        k: number of best columns wanted.
        HOT: whether only hot groups were stored, see `Screened`.
        BOUNDED: whether keys contain upper bounds; otherwise they contain product plus shift.
        GROUP: columns per group.
        CAPACITY: power of two, length of a list.
        BLOCK: columns per iteration.
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
