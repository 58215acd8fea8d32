"""Protocol of activations: an endless, reproducible stream of batches."""

from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes in which activations may be stored and batches may be requested."""


class Batch(NamedTuple):
    """Rows for one training step."""

    x: Tensor
    """[n, d]"""
    target: Tensor | None
    """[n, d_out] if something other than x is reconstructed (a transcoder)."""
    where: str
    """Files and rows between which these rows lie, for an error message."""
    rows: NDArray[np.int64]
    """[n] number of each row in its source; `Activations.locate` maps it to a file."""


class Activations(Protocol):
    """Activations from any source."""

    @property
    def d(self) -> int:
        """Width of a row."""

    @property
    def rows(self) -> int | None:
        """Number of rows in an epoch; None if unknown."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the batches."""

    @property
    def fingerprint(self) -> str:
        """Short string that changes when the data changes; "unknown" for an iterator."""

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches of exactly `batch_size` rows, endlessly.

        Every row comes once per epoch, and a batch may hold the end of one epoch and the start of
        the next. The same seed, size and start give the same bits, so training that saved the
        number of its step resumes exactly where it stopped.

        Args:
            batch_size: number of rows in a batch.
            seed: seed of the order of the rows.
            start: number of the first batch to yield.

        Returns:
            Iterator over batches of rows [batch_size, d].
        """

    def locate(self, row: int) -> str:
        """Return the origin of a row, for an error message.

        Args:
            row: number of the row.

        Returns:
            The file and the place in it, as text.
        """


Item = Tensor | NDArray[Any]
"""Rows [n, d]."""

ActivationSource = Activations | Item | str | Path | Iterable[Item | tuple[Item, Item] | list[Item]]
"""Any source that `open_activations` accepts.

That is: activations, a tensor or array [n, d], a path, or an iterable of rows or of pairs (rows,
targets).
"""


def check_stream(batch_size: object, seed: object, start: object) -> None:
    """Check that the arguments of `Activations.batches` are integers in range."""
    checks.whole("batch_size", batch_size, 1)
    checks.whole("seed", seed, 0)
    checks.whole("start", start, 0)


def check_dtype(dtype: object) -> None:
    """Check that `dtype` is one of `DTYPES`."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype must be float16, bfloat16, float32 or float64, got {dtype_name(dtype)}"
        )


def stored_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype of batches that are made from columns of these dtypes.

    It is a half precision if that holds the values of all columns, otherwise float32, in which
    training computes.
    """
    halves = all(dtype in (torch.float16, torch.bfloat16) for dtype in dtypes)
    return reduce(torch.promote_types, dtypes) if halves else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as `bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
