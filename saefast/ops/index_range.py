"""Range of the indices of a code on a GPU, read by the host once for each tensor."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.ops import gpu


class _Known(NamedTuple):
    """Indices that are known to be in a range."""

    indices: weakref.ref[Tensor]
    version: int
    """number of changes of the tensor in place until its range was known"""
    m: int
    """end of the range [0, m)"""


_known: dict[int, _Known] = {}
"""Known indices by the identity of their tensor."""


def remember(indices: Tensor, m: int) -> None:
    """Note that all entries of `indices` are in [0, m), as computed by an encode.

    Tensors created in inference mode are not noted: their changes are not counted.
    """
    if indices.is_inference():
        return
    key = id(indices)
    reference = weakref.ref(indices, lambda _: _known.pop(key, None))
    _known[key] = _Known(reference, indices._version, m)


def check_in_range(name: str, indices: Tensor, m: int) -> None:
    """Raise a ValueError unless all entries of indices on a GPU are in [0, m).

    The host waits for the GPU, except for a tensor that has not changed since its last check, and
    while a CUDA graph is recorded: then nothing is checked. Writes through `indices.data` are not
    noticed; the kernels do not read out of range in any case.
    """
    known = _known.get(id(indices))
    if (
        known is not None
        and known.indices() is indices
        and known.m <= m
        and known.version == indices._version
    ) or gpu.capturing(indices):
        return
    # One reduction, and one number for the host, where comparisons would start four kernels.
    if indices.numel() and not _extremes_in_range(indices, m):
        checks.in_range(name, indices, m)
    remember(indices, m)


def _extremes_in_range(indices: Tensor, m: int) -> bool:
    low, high = torch.stack(torch.aminmax(indices)).tolist()
    return bool(low >= 0 and high < m)
