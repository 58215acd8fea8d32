"""The lists of a screening, kept and sorted by Triton."""

from torch import Tensor

from . import choose as _choose
from . import keep_best as _keep_best
from .device import LAUNCH, power_of_two
from .lists import GROUP, Bounds, Lists, Screened


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
        num_warps=lists.warps,
        **LAUNCH,
    )


def choose(lists: Lists, values: Tensor, indices: Tensor) -> None:
    """The k best of every list, in order."""
    n, k = values.shape
    _choose.choose[(n,)](
        lists.keys,
        lists.counts,
        values,
        indices,
        k,
        FEW=min(power_of_two(k + k // 4), lists.capacity),
        CAPACITY=lists.capacity,
        num_warps=lists.warps,
        **LAUNCH,
    )
