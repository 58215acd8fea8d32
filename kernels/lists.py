"""What a screening keeps per row and per column, in the form that all its kernels share."""

from typing import NamedTuple

import torch
from torch import Tensor

from .device import interpreting

GROUP = 32
"""Columns whose largest score decides whether any of them leaves the fused product."""


class Bounds(NamedTuple):
    """A score differs from its screening product by at most reach * norm + spread * lost."""

    shift: Tensor
    """[m] added to the product: the scaled bias, raised by what its roundings can take"""
    norm: Tensor
    lost: Tensor
    reach: Tensor
    """[n]"""
    spread: Tensor
    """[n]"""


class Lists(NamedTuple):
    """The rows' lists of candidates, see `keep_best`."""

    keys: Tensor
    counts: Tensor
    floor_keys: Tensor
    floor: Tensor

    @classmethod
    def allocate(cls, n: int, capacity: int, device: torch.device) -> "Lists":
        """Lists of n rows, which `bounds.row_bounds` makes empty."""
        return cls(
            torch.empty(n, capacity, dtype=torch.int64, device=device),
            torch.empty(n, dtype=torch.int32, device=device),
            torch.empty(n, dtype=torch.int64, device=device),
            torch.empty(n, dtype=torch.float32, device=device),
        )

    @property
    def capacity(self) -> int:
        """The longest a list can be."""
        return self.keys.shape[1]


def warps_of(capacity: int) -> int:
    """Of a Triton program that holds a whole list in its registers."""
    return max(1, min(16, capacity // 256))


class Screened(NamedTuple):
    """Scores of the columns first : first + columns, [n, width]."""

    scores: Tensor
    maxima: Tensor | None
    """[n, width / GROUP] the largest of each group, if `hot_groups` stored only the hot ones;
    its scores hold the bias already"""
    hot_list: Tensor | None
    """scratch of the size of `maxima`"""
    first: int
    columns: int
    width: int


def block() -> int:
    """Return the number of columns that the program of a row looks at together."""
    return 16 if interpreting() else 256
