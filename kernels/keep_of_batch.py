"""The largest values of a whole batch, from rows that hold their own in descending order.

The smallest value that is kept is found by its bits: four passes count one byte of each value, and
each pass looks only at values that agree with it in the bytes before. Counts are integers, so the
order of atomic additions does not matter, and nothing waits for the GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two, programs_at_once

_BYTES = 4
_DIGITS = tl.constexpr(256)


@triton.jit
def key_at(values, place, real):
    """The bits of values as int32, which has their order where they are positive; 0 elsewhere."""
    value = tl.load(values + place, real, other=0.0)
    return tl.where(value > 0.0, value, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def found_so_far(digits, wanted, BYTES: tl.constexpr):
    """The first bytes of the `wanted`-th largest key, and its rank among keys that share them.

    All bytes are 0 where fewer keys are positive.
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
    """Count byte BYTE of the keys that agree with the wanted one in the bytes before it."""
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
    """How many values of one row are larger than the wanted one, and how many are equal to it."""
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
    # Where fewer are positive than wanted, the rows themselves lower it: see `cut_row`.
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
    """Copy the values of one row that are kept; of those equal to the smallest, the first."""
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


def keep_of_batch(
    values: Tensor, indices: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.keep_of_batch` of checked, contiguous float32 values with fewer than 2^31."""
    n, width = values.shape
    kept_values, kept_indices = torch.empty_like(values), torch.empty_like(indices)
    kept = torch.empty(n, dtype=torch.int64, device=values.device)
    if values.numel() == 0 or wanted == 0:
        return kept_values.zero_(), kept_indices.zero_(), kept.zero_(), values.new_zeros(())
    digits = torch.zeros(_BYTES, 256, dtype=torch.int32, device=values.device)
    larger, tied = (torch.empty(n, dtype=torch.int32, device=values.device) for _ in range(2))
    smallest = torch.empty((), dtype=torch.int32, device=values.device)
    block = 16 if interpreting() else 2048
    programs = min(triton.cdiv(values.numel(), block), programs_at_once(values))
    for byte in range(_BYTES):
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
