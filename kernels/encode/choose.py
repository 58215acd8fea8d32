"""Sort the k best entries of every row's list."""

import triton
import triton.language as tl

from ..keys import EMPTY, index_of, score_of
from .keep_best import cut_list


@triton.jit
def choose(keys, counts, values, indices, k, FEW: tl.constexpr, CAPACITY: tl.constexpr):
    """Write the k best entries of one row's list, in order; one program per row.

    A list of more than FEW keys is first cut, in place: sorting all of a long list would take
    several times as long.

    Args:
        keys: [rows, CAPACITY] int64, lists of keys of exact scores.
        counts: [rows] int32, lengths of the lists.
        values: [rows, k] output, scores in descending order; undefined beyond the length of a list.
        indices: [rows, k] int64 output, their columns.
        k: number of entries.
        FEW: power of two, at least k + k // 4, the length to which a list of exact scores can
            always be cut.
        CAPACITY: power of two, row stride of `keys`.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    list_at = keys + row * CAPACITY
    if count > FEW:
        count, _ = cut_list(
            list_at, count, EMPTY, row, keys, keys, keys, keys, keys, k, False, CAPACITY
        )
        tl.debug_barrier()  # the list was written by other threads of this program
    place = tl.arange(0, FEW)
    best = tl.sort(tl.load(list_at + place, place < count, other=EMPTY), descending=True)
    at = row * k + place
    tl.store(values + at, score_of(best).to(values.dtype.element_ty), place < k)
    tl.store(indices + at, index_of(best).to(tl.int64), place < k)
