"""Positions of the tensors in a safetensors file, found without reading the tensors."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

from saefast.disk.sealed_tensors import LONGEST_HEADER

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Supported dtypes by their names in the format."""


class Place(NamedTuple):
    """Dtype, shape and first byte of one tensor in a file."""

    dtype: torch.dtype | None
    """None if it is not among `DTYPES`."""
    shape: tuple[int, ...]
    offset: int


def places(path: Path) -> dict[str, Place]:
    """Return the tensors of the file by name, after checking that each lies within the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < header_size <= min(size - 8, LONGEST_HEADER):
            raise ValueError(f"{path} is truncated or not a safetensors file; write it again")
        header = file.read(header_size)
    begin = 8 + header_size
    found = {}
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            first, end = entry["data_offsets"]
            dtype = DTYPES.get(entry["dtype"])
            shape = tuple(entry["shape"])
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"{name} has shape {shape}")
            if dtype is not None and math.prod(shape) * dtype.itemsize != end - first:
                raise ValueError(f"{name} has shape {shape} in {end - first} bytes")
            if not 0 <= first <= end <= size - begin:
                raise ValueError(f"{name} ends at byte {begin + end} of {size}")
            found[name] = Place(dtype, shape, begin + first)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); write it again"
        ) from error
    return found
