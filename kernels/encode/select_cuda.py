"""Keep and sort the candidate lists of a screen by CUDA C++, if it was built."""

import torch
from torch import Tensor

from saefast import _cuda

from .lists import Bounds, Lists, Screened


def keep_best(
    screened: Screened, bounds: Bounds, lists: Lists, k: int, block: int, *, bounded: bool
) -> None:
    """Append screened columns to every row's list, see `kernels/encode/keep_best.py`.

    Args:
        screened: scores of a range of columns.
        bounds: error bounds.
        lists: candidate lists, updated in place.
        k: number of columns wanted per row.
        block: columns for which every list has places left between calls.
        bounded: whether keys contain upper bounds of scores; otherwise the screened scores.
    """
    _cuda.keep_best(
        screened.scores.data_ptr(),
        0 if screened.maxima is None else screened.maxima.data_ptr(),
        bounds.shift.data_ptr(),
        bounds.norm.data_ptr(),
        bounds.lost.data_ptr(),
        bounds.reach.data_ptr(),
        bounds.spread.data_ptr(),
        lists.keys.data_ptr(),
        lists.counts.data_ptr(),
        lists.floor_keys.data_ptr(),
        lists.floor.data_ptr(),
        lists.counts.shape[0],
        screened.first,
        screened.columns,
        screened.width,
        k,
        lists.capacity,
        block,
        screened.maxima is not None,
        bounded,
        _stream(),
    )


def choose(keys: Tensor, counts: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the k best entries of every list, in order.

    Args:
        keys: [n, capacity] int64, lists of keys of exact scores.
        counts: [n] int32, lengths of the lists.
        values: [n, k] float32 or bfloat16 output; NaN beyond the length of a list.
        indices: [n, k] int64 output; undefined beyond the length of a list.
    """
    n, k = values.shape
    _cuda.choose(
        keys.data_ptr(),
        counts.data_ptr(),
        values.data_ptr(),
        indices.data_ptr(),
        n,
        k,
        keys.shape[1],
        values.dtype == torch.bfloat16,
        _stream(),
    )


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)
