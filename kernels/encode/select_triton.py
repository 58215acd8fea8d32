"""Keep and sort the candidate lists of a screen by Triton."""

from torch import Tensor

from ..device import LAUNCH, power_of_two, thread_registers
from . import choose as _choose
from . import keep_best as _keep_best
from .lists import GROUP, Bounds, Lists, Screened, warps_of


def keep_best(
    screened: Screened, bounds: Bounds, lists: Lists, k: int, block: int, *, bounded: bool
) -> None:
    """Append screened columns to every row's list, see `kernels/encode/keep_best.py`.

    Args:
        screened: scores of a range of columns.
        bounds: error bounds.
        lists: candidate lists, updated in place.
        k: number of columns wanted per row.
        block: columns that are processed at a time.
        bounded: whether keys contain upper bounds of scores; otherwise the screened scores.
    """
    scores, maxima, hot_list, *ranges = screened
    _keep_best.keep_best[(lists.counts.shape[0],)](
        scores,
        scores if maxima is None else maxima,
        scores if hot_list is None else hot_list,
        *bounds,
        *lists,
        *ranges,
        k,
        HOT=maxima is not None,
        BOUNDED=bounded,
        GROUP=GROUP,
        CAPACITY=lists.capacity,
        BLOCK=block,
        num_warps=warps_of(lists.capacity),
        maxnreg=thread_registers(16),
        **LAUNCH,
    )


def choose(keys: Tensor, counts: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the k best entries of every list, in order; long lists are cut in place.

    Args:
        keys: [n, capacity] int64, lists of keys of exact scores.
        counts: [n] int32, lengths of the lists.
        values: [n, k] output; NaN beyond the length of a list.
        indices: [n, k] int64 output; undefined beyond the length of a list.
    """
    n, k = values.shape
    capacity = keys.shape[1]
    _choose.choose[(n,)](
        keys,
        counts,
        values,
        indices,
        k,
        FEW=min(power_of_two(k + k // 4), capacity),
        CAPACITY=capacity,
        num_warps=warps_of(capacity),
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
