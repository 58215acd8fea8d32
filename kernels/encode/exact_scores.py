"""Compute float32 scores: of columns that a screen left in doubt, of whole rows if it failed.

A row has failed if its list was too short or holds fewer than k columns.
"""

import triton
import triton.language as tl

from ..device import interpreting, power_of_two
from ..keys import EMPTY, index_of, key_of
from .keep_best import cut_list

NOT_A_NUMBER = tl.constexpr(-1)
"""count of a part of a row whose columns are not scored, because operands are NaN or infinite"""


def dot_block(d: int) -> tuple[int, int]:
    """Return columns and width of the blocks in which exact scores are summed in all kernels."""
    width = min(power_of_two(d), 16 if interpreting() else 256)
    return (16, width)


@triton.jit
def exact_scores(
    x,
    weight,
    bias,
    scale,
    row,
    index,
    real,
    d,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute (x[row] . weight[index] + bias[index]) * scale[index]; -infinity if the bias is.

    The order of the sum over d follows from the shapes, so a score has the same bits whether it
    belongs to one of a row's candidates or is computed with all columns. All callers must therefore
    use the COLUMNS and BLOCK_D of `dot_block`.

    Args:
        x: [n, d] rows.
        weight: [m, d] rows.
        bias: [m], if BIASED.
        scale: [m], if SCALED.
        row: int64, row of x.
        index: [COLUMNS] rows of the weight.
        real: [COLUMNS] whether each is wanted; the scores of others are undefined.
        d: width.
        BIASED: whether there is a bias.
        SCALED: whether there is a scale.
        COLUMNS: number of scores.
        BLOCK_D: elements of the width per iteration.

    Returns:
        [COLUMNS] float32.
    """
    depth = tl.arange(0, BLOCK_D)
    sums = tl.zeros((COLUMNS, BLOCK_D), tl.float32)
    right_at = weight + index.to(tl.int64)[:, None] * d + depth[None, :]
    left_at = x + row * d + depth
    for i in range(0, d, BLOCK_D):
        inside = depth < d - i
        left = tl.load(left_at + i, inside, other=0.0).to(tl.float32)
        right = tl.load(right_at + i, real[:, None] & inside[None, :], other=0.0).to(tl.float32)
        sums += left[None, :] * right
    score = tl.sum(sums, axis=1)
    masked = real & (index < 0)
    if BIASED:
        added = tl.load(bias + index, real, other=0.0).to(tl.float32)
        masked = added == float("-inf")
        score += added
    if SCALED:
        score *= tl.load(scale + index, real, other=0.0).to(tl.float32)
    return tl.where(masked, float("-inf"), score)


@triton.jit
def score_candidates(
    x,
    weight,
    bias,
    scale,
    keys,
    counts,
    d,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    CAPACITY: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Replace the upper bounds in one row's list by exact scores; one program per row.

    Args:
        x: [n, d] rows.
        weight: [m, d] rows.
        bias: [m], if BIASED.
        scale: [m], if SCALED.
        keys: [n, CAPACITY] int64, lists, updated in place.
        counts: [n] int32, lengths of the lists.
        d: width.
        BIASED: whether there is a bias.
        SCALED: whether there is a scale.
        CAPACITY: row stride of `keys`.
        COLUMNS: see `exact_scores`.
        BLOCK_D: see `exact_scores`.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    lane = tl.arange(0, COLUMNS)
    for start in range(0, count, COLUMNS):
        real = start + lane < count
        at = keys + row * CAPACITY + start + lane
        index = tl.where(real, index_of(tl.load(at, real, other=0)), 0)
        score = exact_scores(
            x, weight, bias, scale, row, index, real, d, BIASED, SCALED, COLUMNS, BLOCK_D
        )
        tl.store(at, key_of(score, index), real)


@triton.jit
def count_failed(counts, begin, rows, k, BLOCK: tl.constexpr):
    """Return which of BLOCK rows from `begin` on have failed, and how many these are."""
    row = begin + tl.arange(0, BLOCK)
    # OVERFLOW is less than every k.
    failed = tl.load(counts + row, row < rows, other=2**31 - 1) < k
    return failed, tl.sum(failed.to(tl.int32))


@triton.jit
def total_failed(counts, rows, k, BLOCK: tl.constexpr):
    """Return the number of failed rows."""
    total = 0
    for begin in range(0, rows, BLOCK):
        _, found = count_failed(counts, begin, rows, k, BLOCK)
        total += found
    return total


@triton.jit
def failed_row(counts, number, rows, k, BLOCK: tl.constexpr):
    """Return the index of the failed row that `number` failed rows precede."""
    before = 0
    row = 0
    for begin in range(0, rows, BLOCK):
        failed, found = count_failed(counts, begin, rows, k, BLOCK)
        if (number >= before) & (number < before + found):
            here = failed & (tl.cumsum(failed.to(tl.int32), 0) - 1 == number - before)
            row = begin + tl.sum(tl.where(here, tl.arange(0, BLOCK), 0))
        before += found
    return row


@triton.jit
def any_nan(values, size, BLOCK: tl.constexpr):
    """Return whether one of the first `size` values is NaN."""
    lane = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        value = tl.load(values + start + lane, start + lane < size, other=0.0).to(tl.float32)
        found |= (value != value).to(tl.int32)
    return tl.max(found) > 0


# Code specialised to 1 or to multiples of 16 is not worth its compilation for these sizes.
@triton.jit(do_not_specialize=["rows", "latents", "k"])
def score_all(
    x,
    weight,
    bias,
    scale,
    row_lost,
    latent_lost,
    counts,
    failed,
    total,
    work,
    parts,
    part_counts,
    rows,
    latents,
    d,
    k,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    CAPACITY: tl.constexpr,
    KEPT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LOOK: tl.constexpr,
):
    """Score all columns of every failed row, and keep the best of each of SPLIT parts of them.

    A fixed number of programs shares the parts of all failed rows; usually there are none.

    If a row holds NaN or infinity, nothing is scored, and the `part_counts` of its parts are
    NOT_A_NUMBER; the same applies to all rows if the weight holds NaN or infinity, or the bias NaN.
    To score all columns of all rows would take seconds in every step of a training that has
    diverged.

    Args:
        x: [rows, d] rows.
        weight: [latents, d] rows.
        bias: [latents], if BIASED.
        scale: [latents], if SCALED.
        row_lost: [rows] float32, see `RoundedRows`; NaN if the row holds NaN or infinity.
        latent_lost: [latents] float32, the same of the weight.
        counts: [rows] int32, lengths of the lists after the screen.
        failed: [rows] int32 output, the failed rows in ascending order, for `join_parts`.
        total: [] int32 output, their number.
        work: [programs, CAPACITY] int64 scratch.
        parts: [rows * SPLIT, KEPT] int64 output, at least the k best keys of each part, in any
            order.
        part_counts: [rows * SPLIT] int32 output, number of keys of each part, or NOT_A_NUMBER.
        rows: number of rows.
        latents: number of latents.
        d: width.
        k: number of columns wanted per row.
        BIASED: whether there is a bias.
        SCALED: whether there is a scale.
        SPLIT: parts per row.
        CAPACITY: power of two, at least 2 k + COLUMNS.
        KEPT: power of two, at least k + k // 4.
        COLUMNS: see `exact_scores`.
        BLOCK_D: see `exact_scores`.
        LOOK: rows whose counts are read at a time.
    """
    all_failed = total_failed(counts, rows, k, LOOK)
    tl.store(total, all_failed, tl.program_id(0) == 0)
    diverged = False
    if all_failed == rows:  # as NaN or infinity in the weight causes, or NaN in the bias
        diverged = any_nan(latent_lost, latents, LOOK)
        if BIASED:
            diverged |= any_nan(bias, latents, LOOK)
    list_at = work + tl.program_id(0) * CAPACITY
    lane = tl.arange(0, COLUMNS)
    place = tl.arange(0, KEPT)
    share = tl.cdiv(latents, SPLIT)
    for item in range(tl.program_id(0), all_failed * SPLIT, tl.num_programs(0)):
        found = failed_row(counts, item // SPLIT, rows, k, LOOK)
        tl.store(failed + item // SPLIT, found, item % SPLIT == 0)
        row = tl.zeros((), tl.int64) + found
        begin = ((tl.zeros((), tl.int64) + item % SPLIT) * share).to(tl.int32)
        lost = tl.load(row_lost + row)
        hopeless = diverged | (lost != lost)
        end = tl.where(hopeless, begin, tl.minimum(begin + share, latents))
        count = 0
        floor_key = EMPTY
        for start in range(begin, end, COLUMNS):
            real = start + lane < end
            index = tl.where(real, start + lane, 0)
            score = exact_scores(
                x, weight, bias, scale, row, index, real, d, BIASED, SCALED, COLUMNS, BLOCK_D
            )
            key = key_of(score, index)
            passes = real & (key >= floor_key)
            after = count + tl.cumsum(passes.to(tl.int32), 0) - 1
            tl.store(list_at + after, key, mask=passes)
            count += tl.sum(passes.to(tl.int32))
            if count > CAPACITY - COLUMNS:
                count, floor_key = cut_list(
                    list_at, count, floor_key, row, x, x, x, x, x, k, False, CAPACITY
                )
        if count > k:
            count, floor_key = cut_list(
                list_at, count, floor_key, row, x, x, x, x, x, k, False, CAPACITY
            )
        tl.debug_barrier()
        best = tl.load(list_at + place, place < count, other=EMPTY)
        tl.store(parts + (tl.zeros((), tl.int64) + item) * KEPT + place, best, place < count)
        tl.store(part_counts + item, tl.where(hopeless, NOT_A_NUMBER, count))
        tl.debug_barrier()


@triton.jit(do_not_specialize=["k"])
def join_parts(
    failed,
    total,
    parts,
    part_counts,
    keys,
    counts,
    k,
    SPLIT: tl.constexpr,
    CAPACITY: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Join the parts of every failed row to its list; a fixed number of programs shares the rows.

    The list of a row that is NOT_A_NUMBER gets the first k columns, with NaN as their scores.

    Args:
        failed: [rows] int32, from `score_all`.
        total: [] int32, from `score_all`.
        parts: [rows * SPLIT, KEPT] int64, from `score_all`.
        part_counts: [rows * SPLIT] int32, from `score_all`.
        keys: [rows, CAPACITY] int64 output, lists.
        counts: [rows] int32 output, lengths of the lists.
        k: number of columns wanted per row.
        SPLIT: parts per row.
        CAPACITY: power of two, at least 2 KEPT.
        KEPT: row stride of `parts`.
    """
    place = tl.arange(0, KEPT)
    for item in range(tl.program_id(0), tl.load(total), tl.num_programs(0)):
        row = tl.load(failed + item).to(tl.int64)
        list_at = keys + row * CAPACITY
        count = 0
        first_part = item * SPLIT
        if tl.load(part_counts + first_part) == NOT_A_NUMBER:
            not_a_number = tl.full((KEPT,), float("nan"), tl.float32)
            tl.store(list_at + place, key_of(not_a_number, place), place < k)
            count = k
            first_part += SPLIT
        for part in range(first_part, item * SPLIT + SPLIT):
            held = tl.load(part_counts + part)
            key = tl.load(
                parts + (tl.zeros((), tl.int64) + part) * KEPT + place, place < held, other=EMPTY
            )
            tl.store(list_at + count + place, key, place < held)
            count += held
            if count > CAPACITY - KEPT:
                count, _ = cut_list(
                    list_at, count, EMPTY, row, keys, keys, keys, keys, keys, k, False, CAPACITY
                )
        tl.store(counts + row, count)
        tl.debug_barrier()
