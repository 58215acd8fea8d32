"""What a trainer asks of its data: an endless, reproducible stream of batches."""

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
"""What activations may be stored as, and come out as."""


class Batch(NamedTuple):
    """Rows for one step of training."""

    x: Tensor
    """[n, d]"""
    target: Tensor | None
    """[n, d_out] where the model reconstructs something else than x (a transcoder)."""
    where: str
    """The files and rows between which these rows lie, for an error message."""
    rows: NDArray[np.int64]
    """[n] the number of each row in its source; `Activations.locate` says where that is."""


class Activations(Protocol):
    """Activations from anywhere."""

    @property
    def d(self) -> int:
        """The width of a row."""

    @property
    def rows(self) -> int | None:
        """How many rows an epoch has; None where that is unknown."""

    @property
    def dtype(self) -> torch.dtype:
        """What the batches come out as."""

    @property
    def fingerprint(self) -> str:
        """A short string that changes when the data changes; "unknown" for an iterator."""

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of exactly `batch_size` rows, without end, from the one numbered `start`.

        Every row comes once per epoch, and a batch may hold the end of one epoch and the start of
        the next. The same seed, size and start give the same bits, so training that kept the
        number of its step goes on as if it had never stopped.
        """

    def locate(self, row: int) -> str:
        """Where the row of this number lies, for an error message."""


Item = Tensor | NDArray[Any]
"""Rows [n, d]"""

ActivationSource = Activations | Item | str | Path | Iterable[Item | tuple[Item, Item] | list[Item]]
"""What `open_activations` takes: activations, a tensor or array [n, d], a path, or what yields
rows or pairs (rows, targets)"""


def check_stream(batch_size: object, seed: object, start: object) -> None:
    """The arguments of `Activations.batches` are integers in range."""
    checks.whole("batch_size", batch_size, 1)
    checks.whole("seed", seed, 0)
    checks.whole("start", start, 0)


def check_dtype(dtype: object) -> None:
    """`dtype` is one that activations come in."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype must be float16, bfloat16, float32 or float64, got {dtype_name(dtype)}"
        )


def stored_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype in which batches of columns of these dtypes reach a training.

    It is a half precision where that holds the values of all columns, otherwise float32, in which
    a training computes.
    """
    halves = all(dtype in (torch.float16, torch.bfloat16) for dtype in dtypes)
    return reduce(torch.promote_types, dtypes) if halves else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
