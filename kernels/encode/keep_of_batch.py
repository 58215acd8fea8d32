"""Keep the largest values of a whole batch, given rows in descending order.

The smallest kept value is found by its bits: four passes count one byte of each value, and each
pass looks only at values that agree with it in the previous bytes. Counts are integers, so the
order of atomic additions does not matter. The host does not wait for the GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, power_of_two, programs_at_once

_BYTES = 4
_DIGITS = tl.constexpr(256)


@triton.jit
def key_at(values, place, real):
    """Return the bits of positive values as int32, ordered like the values; 0 for other values."""
    value = tl.load(values + place, real, other=0.0)
    return tl.where(value > 0.0, value, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def found_so_far(digits, wanted, BYTES: tl.constexpr):
    """Find the first BYTES bytes of the `wanted`-th largest key from the counts of digits.

    Args:
        digits: [4, 256] int32, see `count_digits`.
        wanted: rank of the key, from 1.
        BYTES: number of bytes that have been counted.

    Returns:
        The bytes, all 0 if fewer keys are positive, and the rank of the key among those that share
        them.
    """
    lane = tl.arange(0, _DIGITS)
    prefix = wanted * 0
    rank = wanted
    for byte in tl.static_range(BYTES):
        counts = tl.load(digits + byte * _DIGITS + lane)
        at_least = tl.sum(counts, axis=0) - tl.cumsum(counts, 0) + counts
        digit = tl.max(tl.where(at_least >= rank, lane, 0), axis=0)
        rank -= tl.sum(tl.where(lane > digit, counts, 0), axis=0)
        prefix = (prefix << 8) | digit
    return prefix, rank


@triton.jit
def count_digits(values, digits, total, wanted, BYTE: tl.constexpr, BLOCK: tl.constexpr):
    """Count byte BYTE of the keys that agree with the wanted key in the previous bytes.

    Programs share the values.

    Args:
        values: [total] float32.
        digits: [4, 256] int32; row BYTE is incremented.
        total: number of values.
        wanted: rank of the wanted key, from 1.
        BYTE: 0 for the most significant byte.
        BLOCK: values per iteration.
    """
    prefix, _ = found_so_far(digits, wanted, BYTE)
    counts = tl.zeros((_DIGITS,), tl.int32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, total, tl.num_programs(0) * BLOCK):
        place = start + tl.arange(0, BLOCK)
        key = key_at(values, place, place < total)
        agrees = key > 0
        if BYTE > 0:
            agrees = agrees & ((key >> (32 - 8 * BYTE)) == prefix)
        counts += tl.histogram((key >> (24 - 8 * BYTE)) & 255, _DIGITS, mask=agrees)
    lane = tl.arange(0, _DIGITS)
    tl.atomic_add(digits + BYTE * _DIGITS + lane, counts, mask=counts > 0)


@triton.jit
def count_row(values, digits, larger, tied, smallest, wanted, width, BLOCK: tl.constexpr):
    """Count the values of one row that exceed the wanted one, and those that equal it.

    Args:
        values: [n, width] float32.
        digits: [4, 256] int32, complete.
        larger: [n] int32 output.
        tied: [n] int32 output.
        smallest: [] int32 output of row 0: bits of the smallest kept value, or infinity, to be
            lowered by `cut_row`, if fewer values than wanted are positive.
        wanted: rank of the wanted value, from 1.
        width: number of values per row.
        BLOCK: values per iteration.
    """
    row = tl.program_id(0).to(tl.int64)
    limit, _ = found_so_far(digits, wanted, 4)
    above = tl.zeros((BLOCK,), tl.int32)
    equal = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key = key_at(values, row * width + at, at < width)
        above += (key > limit).to(tl.int32)
        equal += ((key == limit) & (key > 0)).to(tl.int32)
    tl.store(larger + row, tl.sum(above, axis=0))
    tl.store(tied + row, tl.sum(equal, axis=0))
    # If fewer values than wanted are positive, `cut_row` lowers it to the smallest of them.
    infinity = 0x7F800000
    tl.store(smallest, tl.where(limit > 0, limit, infinity), mask=row == 0)


@triton.jit
def cut_row(
    values,
    indices,
    digits,
    larger,
    tied,
    tied_so_far,
    kept_values,
    kept_indices,
    kept,
    smallest,
    wanted,
    width,
    BLOCK: tl.constexpr,
):
    """Copy the kept values of one row; of those equal to the smallest, the first of the batch stay.

    Args:
        values: [n, width] float32, descending within a row.
        indices: [n, width] int64.
        digits: [4, 256] int32, complete.
        larger: [n] int32, from `count_row`.
        tied: [n] int32, from `count_row`.
        tied_so_far: [n] cumulative sum of `tied`.
        kept_values: [n, width] output, zeros in place of discarded values.
        kept_indices: [n, width] int64 output, zeros in place of discarded indices.
        kept: [n] int64 output, number of kept values.
        smallest: [] int32, bits of the smallest kept value; lowered if fewer than wanted are
            positive.
        wanted: number of values to keep in the batch.
        width: number of values per row.
        BLOCK: values per iteration.
    """
    row = tl.program_id(0).to(tl.int64)
    limit, rank = found_so_far(digits, wanted, 4)
    equal = tl.load(tied + row)
    before = (tl.load(tied_so_far + row) - equal).to(tl.int32)
    stays = tl.load(larger + row) + tl.maximum(tl.minimum(equal, rank - before), 0)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        place = row * width + at
        value = tl.load(values + place, at < stays, other=0.0)
        index = tl.load(indices + place, at < stays, other=0)
        tl.store(kept_values + place, value, at < width)
        tl.store(kept_indices + place, index, at < width)
    tl.store(kept + row, stays.to(tl.int64))
    last = key_at(values, row * width + stays - 1, stays > 0)
    tl.atomic_min(smallest, last, mask=(limit == 0) & (stays > 0))


def count_bytes(values: Tensor, wanted: int, most: int) -> Tensor:
    """Count the digits from which `found_so_far` reads the first bytes of the wanted largest value.

    Args:
        values: float32 of any shape, contiguous, at least one and fewer than 2^31.
        wanted: rank of the wanted value, from 1.
        most: number of bytes.

    Returns:
        [4, 256] int32.
    """
    digits = torch.zeros(_BYTES, 256, dtype=torch.int32, device=values.device)
    block = 16 if interpreting() else 2048
    programs = min(triton.cdiv(values.numel(), block), programs_at_once(values))
    for byte in range(most):
        count_digits[(programs,)](
            values,
            digits,
            values.numel(),
            wanted,
            BYTE=byte,
            BLOCK=block,
            num_warps=4,
            **LAUNCH,
        )
    return digits


def keep_of_batch(
    values: Tensor, indices: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the `wanted` largest positive values of a batch, as `reference.keep_of_batch`.

    Args:
        values: [n, width] float32, contiguous, descending within a row, fewer than 2^31 in all.
        indices: [n, width] int64, contiguous.
        wanted: number of values to keep.

    Returns:
        Values and indices [n, width], the number of kept values per row [n] int64, and the smallest
        of them [].
    """
    n, width = values.shape
    kept_values, kept_indices = torch.empty_like(values), torch.empty_like(indices)
    kept = torch.empty(n, dtype=torch.int64, device=values.device)
    if values.numel() == 0 or wanted == 0:
        return kept_values.zero_(), kept_indices.zero_(), kept.zero_(), values.new_zeros(())
    digits = count_bytes(values, wanted, _BYTES)
    larger, tied = (torch.empty(n, dtype=torch.int32, device=values.device) for _ in range(2))
    smallest = torch.empty((), dtype=torch.int32, device=values.device)
    row_block = min(power_of_two(width), 16 if interpreting() else 512)
    settings = {"BLOCK": row_block, "num_warps": 4, **LAUNCH}
    count_row[(n,)](values, digits, larger, tied, smallest, wanted, width, **settings)
    cut_row[(n,)](
        values,
        indices,
        digits,
        larger,
        tied,
        tied.cumsum(0),
        kept_values,
        kept_indices,
        kept,
        smallest,
        wanted,
        width,
        **settings,
    )
    found = smallest.view(torch.float32)
    return kept_values, kept_indices, kept, torch.where(found == torch.inf, 0.0, found)
