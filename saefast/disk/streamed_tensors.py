"""Write a safetensors file whose tensors come in pieces, so that none is in memory as a whole."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.disk.atomic import write_with
from saefast.disk.checksums import BLANK, KEY, RunningSum, memory_of
from saefast.disk.sealed_tensors import sealed

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


class Pieces(NamedTuple):
    """Tensor that comes in pieces."""

    shape: tuple[int, ...]
    pieces: Iterable[Tensor]
    """contiguous tensors on the CPU, whose bytes in their order are those of the tensor"""


def write_pieces(path: Path, tensors: Mapping[str, Pieces], dtype: torch.dtype) -> None:
    """Write a safetensors file atomically, with the bytes of `write_tensors`.

    Args:
        path: the file.
        tensors: tensors of one dtype, whose pieces are read once, in the order of their names.
        dtype: the dtype.
    """
    metadata = {KEY: BLANK} | {f"{KEY}:{name}": BLANK for name in tensors}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (shape, _) in sorted(tensors.items()):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(_encoded(header))
            for name, (shape, pieces) in sorted(tensors.items()):
                written, running = 0, RunningSum()
                for piece in pieces:
                    memory = memory_of(piece)
                    file.write(memory)
                    running.add(memory)
                    written += len(memory)
                if written != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} must have shape {shape}, got {written} bytes")
                metadata[f"{KEY}:{name}"] = running.digits
            file.seek(0)
            file.write(sealed(_encoded(header)))

    write_with(path, write)


def _encoded(header: Mapping[str, object]) -> bytes:
    """Return the header of a file: its length, and JSON that is padded to a multiple of 8 bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    size = -(-len(text) // 8) * 8
    return size.to_bytes(8, "little") + text.ljust(size)
