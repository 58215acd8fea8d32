"""Activations in memory."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks
from saefast.activations.protocol import DTYPES, dtype_name, stored_dtype
from saefast.activations.shuffled import Held, Shuffled


class TensorActivations(Shuffled):
    """Activations of a tensor or array, in a new permutation in every epoch.

    Only the rows of a batch are copied. Batches lie on the device of the tensor.

    Args:
        x: rows [n, d].
        target: [n, d_out] rows that a transcoder reconstructs; None: x itself.
        dtype: dtype of the batches; None: as given, but float32 unless that is a half precision.
        name: name of the tensor in error messages.
    """

    def __init__(
        self,
        x: Tensor | NDArray[np.generic],
        target: Tensor | NDArray[np.generic] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
        name: str = "the tensor",
    ):
        self._x = as_rows("x", x)
        self._target = None if target is None else as_rows("target", target)
        self._name = name
        rows, d = self._x.shape
        if rows == 0 or d == 0:
            raise ValueError(f"x must have at least one row and column, got shape {(rows, d)}")
        if self._target is not None and len(self._target) != rows:
            raise ValueError(f"target must have as many rows as x, {rows}, got {len(self._target)}")
        # A single block and window: in memory, all rows are equally fast to read.
        if dtype is None:
            both = (self._x,) if self._target is None else (self._x, self._target)
            dtype = stored_dtype(*(values.dtype for values in both))
        super().__init__(rows=rows, d=d, dtype=dtype, block_rows=rows, window_rows=rows)

    def locate(self, row: int) -> str:
        """See `Activations.locate`."""
        return f"{self._name}, row {row}"

    def _reader(self) -> Callable[[list[tuple[int, int]]], Held]:
        def read(spans: list[tuple[int, int]]) -> Held:
            ((first, end),) = spans
            target = None if self._target is None else self._target[first:end]
            return self._x[first:end], target

        return read


def as_rows(name: str, value: object) -> Tensor:
    """Return `value`, a tensor or array [n, d] of floats, as a tensor that shares its memory."""
    if isinstance(value, np.ndarray):
        value = _from_numpy(name, value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor or numpy array [n, d], got {type(value).__name__}"
        )
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got "
            f"{dtype_name(value.dtype)}; convert it with {name}.float()"
        )
    checks.dense(name, value)
    if value.ndim != 2:
        raise ValueError(
            f"{name} must have shape [n, d], got {tuple(value.shape)}; use "
            f"{name}.reshape(-1, {name}.shape[-1]) where the last dimension is d"
        )
    return value.detach()


def _from_numpy(name: str, value: NDArray[np.generic]) -> Tensor:
    if value.dtype.kind != "f" or not value.dtype.isnative or value.dtype.itemsize > 8:
        raise TypeError(
            f"{name} must be float16, float32 or float64 in this machine's byte order, got "
            f"{value.dtype.str}; convert it with {name}.astype('float32')"
        )
    if any(stride < 0 for stride in value.strides):
        value = np.ascontiguousarray(value)
    with warnings.catch_warnings():
        # Torch warns that the array might be written to although it is read-only; it is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(value)
