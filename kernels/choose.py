"""The k best of every row's list, in order."""

import triton
import triton.language as tl

from .keys import EMPTY, index_of, score_of


@triton.jit
def choose_width(keys, count, row, values, indices, k, WIDTH: tl.constexpr, CAPACITY: tl.constexpr):
    """Sort the list of a row, of at most WIDTH keys, and store the first k."""
    place = tl.arange(0, WIDTH)
    key = tl.load(keys + row * CAPACITY + place, place < count, other=EMPTY)
    best = tl.sort(key, descending=True)
    at = row * k + place
    tl.store(values + at, score_of(best).to(values.dtype.element_ty), place < k)
    tl.store(indices + at, index_of(best).to(tl.int64), place < k)


@triton.jit
def choose(keys, counts, values, indices, k, FEW: tl.constexpr, CAPACITY: tl.constexpr):
    """Values and indices [rows, k]; lists of at most FEW keys, which most are, sort faster."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    if count <= FEW:
        choose_width(keys, count, row, values, indices, k, FEW, CAPACITY)
    else:
        choose_width(keys, count, row, values, indices, k, CAPACITY, CAPACITY)
