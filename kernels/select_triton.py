"""The lists of a screening, kept and sorted by Triton."""

from torch import Tensor

from . import choose as _choose
from . import keep_best as _keep_best
from .device import LAUNCH, power_of_two, thread_registers
from .lists import GROUP, Bounds, Lists, Screened, warps_of


def keep_best(
    screened: Screened, bounds: Bounds, lists: Lists, k: int, block: int, *, bounded: bool
) -> None:
    """Feed columns to every row's list."""
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
    """The k best of every list, in order; nothing of worth where a list has fewer."""
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
        **LAUNCH,
    )
