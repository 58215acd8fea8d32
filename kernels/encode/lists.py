"""Records of an encode's screen that all of its kernels share."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..device import interpreting

GROUP = 32
"""number of neighbouring columns that the fused product stores or discards together"""


class Bounds(NamedTuple):
    """Error bounds of screened scores.

    The score of row i and column j differs from its screening product plus shift[j] by at most
    reach[i] * norm[j] + spread[i] * lost[j].
    """

    shift: Tensor
    """[m] float32, added to the screening product: the scaled bias, less the threshold if there is
    one, raised by a bound on the rounding errors of these"""
    norm: Tensor
    """[m] float32, upper bounds of the norms of the columns, see `RoundedRows`"""
    lost: Tensor
    """[m] float32, upper bounds of the norms of the columns' rounding errors"""
    reach: Tensor
    """[n] float32, factor of `norm`"""
    spread: Tensor
    """[n] float32, factor of `lost`"""


class Lists(NamedTuple):
    """The candidate lists of all rows, see `keep_best`."""

    keys: Tensor
    """[n, capacity] int64, keys of the candidates, see `keys`; only the first `counts` of a row are
    set"""
    counts: Tensor
    """[n] int32, length of each list, or `keep_best.OVERFLOW`"""
    floor_keys: Tensor
    """[n] int64, key that at least k scores of the list certainly reach"""
    floor: Tensor
    """[n] float32, score of `floor_keys`"""

    @classmethod
    def allocate(cls, n: int, capacity: int, device: torch.device) -> "Lists":
        """Return uninitialised lists of n rows; `bounds.row_bounds` makes them empty."""
        return cls(
            torch.empty(n, capacity, dtype=torch.int64, device=device),
            torch.empty(n, dtype=torch.int32, device=device),
            torch.empty(n, dtype=torch.int64, device=device),
            torch.empty(n, dtype=torch.float32, device=device),
        )

    @property
    def capacity(self) -> int:
        """Maximum length of a list."""
        return self.keys.shape[1]


def warps_of(capacity: int) -> int:
    """Return the number of warps of a Triton program that holds a whole list in its registers."""
    return max(1, min(16, capacity // 256))


class Screened(NamedTuple):
    """Screened scores of all rows and the columns first : first + columns."""

    scores: Tensor
    """[n, width] float32, row-major; the fused product allocates more, and stores hot groups
    only"""
    maxima: Tensor | None
    """[n, width / GROUP] upper bounds of the scores of each group, from `hot_groups`: a group is
    hot, and stored in `scores` with the shift included, if its bound exceeds the row's floor. None:
    all scores are stored, without the shift"""
    hot_list: Tensor | None
    """int32 scratch of the size of `maxima`"""
    first: int
    """index of the first column"""
    columns: int
    """number of columns"""
    width: int
    """stride of the rows of `scores`: `columns` rounded up to whole tiles, or `columns`"""


def block() -> int:
    """Return the number of columns that a Triton program of a row processes at a time."""
    return 16 if interpreting() else 256
