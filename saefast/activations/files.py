"""Activations in a single file: NumPy's .npy, torch's .pt, or safetensors."""

import math
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from saefast.activations.columns import Column, FileActivations, Span
from saefast.activations.file_bytes import Sums
from saefast.activations.protocol import DTYPES
from saefast.activations.safetensors_file import places
from saefast.activations.tensors import TensorActivations
from saefast.disk.archives import may_allocate, read_archive

_ALONE = (
    "but loading it would run code that is stored in it; if you trust the file, load it yourself "
    "and torch.save the tensor alone"
)
_NUMPY_DTYPES = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}


def open_npy(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> FileActivations:
    """Open an .npy file as activations; the file may be larger than memory.

    Args:
        path: file with an array [n, d] of float16, float32 or float64 in C order.
        dtype: dtype of the batches; None: as stored, but float32 unless that is float16.

    Returns:
        Activations that read rows of the file as they are needed.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            shape, fortran, kind = _npy_header(file)
        except Exception as error:  # those of tokenize, with which numpy reads some headers, too
            raise ValueError(
                f"{path} is not an .npy file: {error}; save the array again with numpy.save"
            ) from error
        offset = file.tell()
        size = os.fstat(file.fileno()).st_size
    if kind.str not in _NUMPY_DTYPES:
        raise ValueError(
            f"{path} must hold little-endian float16, float32 or float64, got {kind.str}; save it "
            f"again after .astype('float32')"
        )
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(
            f"{path} must hold an array [n, d] that is not empty, got shape {shape}; save it "
            f"again after .reshape(-1, d)"
        )
    if fortran:
        raise ValueError(
            f"{path} is stored column by column; save it again after np.ascontiguousarray"
        )
    column = Column([Span(path, offset, shape[0])], shape[1:], _NUMPY_DTYPES[kind.str])
    missing = offset + column.rows * column.row_bytes - size
    if missing > 0:
        raise ValueError(f"{path} is truncated: {missing} bytes are missing; write it again")
    return FileActivations(column, dtype=dtype)


def open_safetensors(
    path: str | Path,
    *,
    tensor: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    verify_reads: bool = True,
) -> FileActivations:
    """Open a tensor of a safetensors file as activations; it may be larger than memory.

    Args:
        path: file with a tensor [n, d] of float16, bfloat16, float32 or float64.
        tensor: name of the tensor; None: the only such tensor in the file.
        dtype: dtype of the batches; None: as stored, but float32 unless that is a half precision.
        verify_reads: compare the bytes that are read with the checksums of their pieces, which
            shards of a store have.

    Returns:
        Activations that read rows of the file as they are needed.
    """
    path = Path(path)
    all_places = places(path)
    fitting = {
        name: place
        for name, place in all_places.items()
        if place.dtype in DTYPES and len(place.shape) == 2 and 0 not in place.shape
    }
    chosen = [tensor] if tensor is not None else list(fitting)
    if len(chosen) != 1 or chosen[0] not in fitting:
        wanted = "one tensor" if tensor is None else f"a tensor {tensor!r}"
        held = ", ".join(f"{name} {list(place.shape)}" for name, place in all_places.items())
        raise ValueError(
            f"{path} must hold {wanted} [n, d] of float16, bfloat16, float32 or float64, but it "
            f"holds {held or 'nothing'}; name one with open_safetensors(path, tensor=...)"
        )
    place = fitting[chosen[0]]
    assert place.dtype is not None  # every entry of `fitting` has a dtype
    sums = Sums.of(path, verify_reads)
    size = math.prod(place.shape) * place.dtype.itemsize
    pieces = None if sums is None else sums.pieces(chosen[0], place.offset, size)
    span = Span(path, place.offset, place.shape[0], pieces)
    column = Column([span], place.shape[1:], place.dtype)
    return FileActivations(column, dtype=dtype)


def open_pt(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> TensorActivations:
    """Load the tensor [n, d] that `torch.save` wrote, whole, and open it as activations.

    Args:
        path: file with a single tensor [n, d]; code that is pickled in it is never run.
        dtype: dtype of the batches; None: as stored, but float32 unless that is a half precision.

    Returns:
        Activations in memory.
    """
    path = Path(path)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    archive = read_archive(path) if zipped else None
    if may_allocate(path, archive):
        raise ValueError(f"{path} must hold one tensor, {_ALONE}")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} must hold one tensor, {_ALONE}") from error
    except Exception as error:  # damaged bytes may raise any exception
        raise ValueError(
            f"{path} is truncated or not written by torch.save: {error}; write it again"
        ) from error
    if not isinstance(value, torch.Tensor):
        raise ValueError(
            f"{path} must hold one tensor [n, d], got {type(value).__name__}; torch.save the "
            f"tensor alone"
        )
    try:
        return TensorActivations(value, dtype=dtype, name=str(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold activations: {error}") from error


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
