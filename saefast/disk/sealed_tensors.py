"""Checksums in the metadata of safetensors files, which other libraries ignore.

Keys and values, all of 16 hexadecimal digits of XXH64 with seed 0:

    saefast.xxh64               of the header (its 8 bytes of length, the JSON, its padding), in
                                which the digits of this value are replaced by zeros
    saefast.xxh64:NAME          of the bytes of tensor NAME
    saefast.xxh64/SIZE:NAME     of each SIZE bytes of tensor NAME, the last piece may be shorter:
                                the digits of all pieces in their order; only in stores

The metadata is sorted by key, so that equal tensors give equal files. A file without any such key
has no checksums.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from saefast.disk.checksums import BLANK, KEY, checksum, damaged, memory_of, numbers

PIECE = 1 << 16
"""Bytes of a piece: a reader of some rows reads at most two pieces that it needs in part."""
HEADER = "the header"
LONGEST_HEADER = 100_000_000
"""Bytes of JSON that the safetensors library reads at most."""

_OF_PIECES = f"{KEY}/{PIECE}:"
_OWN = re.compile(rf'("{re.escape(KEY)}":")[0-9a-f]{{16}}"'.encode())


class Sealed(NamedTuple):
    """Header of a safetensors file, and the checksums in it."""

    header: bytes
    """the length of the JSON in 8 bytes, and the JSON"""
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "Sealed":
        """Read the header of a file whose header is known to be valid JSON."""
        with path.open("rb") as file:
            length = file.read(8)
            header = length + file.read(int.from_bytes(length, "little"))
        return cls(header, json.loads(header[8:]).get("__metadata__") or {})

    @property
    def has_checksums(self) -> bool:
        """Whether the file was written with checksums, even if some of them are damaged."""
        return any(key.startswith(KEY) for key in self.metadata)

    @property
    def intact(self) -> bool:
        """Whether the header has the checksum that it contains."""
        blank, found = _OWN.subn(rf'\g<1>{BLANK}"'.encode(), self.header)
        return found == 1 and checksum(blank) == self.metadata.get(KEY)

    def damages(self, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        """Name the parts that differ from their checksums: the header, or tensors of the file."""
        if not self.has_checksums:
            return
        if not self.intact:
            yield HEADER
            return
        sums = numbers([memory_of(tensor) for tensor in tensors.values()])
        for name, found in zip(tensors, sums, strict=True):
            if self.metadata.get(f"{KEY}:{name}") != f"{found:016x}":
                yield name

    def pieces_of(self, name: str) -> "np.ndarray | None":
        """Return the checksums [pieces] uint64 of the pieces of a tensor; None if it has none."""
        digits = self.metadata.get(_OF_PIECES + name)
        return None if digits is None else np.frombuffer(bytes.fromhex(digits), ">u8")


def check(path: Path, tensors: Mapping[str, Tensor], argument: str | None = None) -> None:
    """Compare a file with its checksums, if it has any.

    Args:
        path: safetensors file.
        tensors: all tensors of the file, mapped into memory.
        argument: argument of the caller that skips the comparison, for the error.

    Raises:
        ValueError: the header or a tensor is damaged; the message names it.
    """
    for name in Sealed.read(path).damages(tensors):
        raise damaged(f"{path}: {name}", argument)


def sums_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, pieces: bool = False
) -> dict[str, str]:
    """Return the metadata of a file with the checksums of its tensors; `sealed` adds the last.

    Args:
        tensors: contiguous tensors on the CPU.
        metadata: further entries.
        pieces: whether to add checksums of pieces.
    """
    memories = {name: memory_of(tensor) for name, tensor in tensors.items()}
    found = dict(metadata or {}) | {KEY: BLANK}
    for name, whole in zip(memories, numbers(list(memories.values())), strict=True):
        found[f"{KEY}:{name}"] = f"{whole:016x}"
    for name, memory in memories.items() if pieces else ():
        cut = [memory[begin : begin + PIECE] for begin in range(0, len(memory), PIECE)]
        found[_OF_PIECES + name] = np.array(numbers(cut), ">u8").tobytes().hex()
    return found


def sealed(header: bytes) -> bytes:
    """Return a header with its metadata in order and its own checksum; the length is unchanged."""
    entries = json.loads(header[8:])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    blank = header[:8] + text.ljust(len(header) - 8)
    return _OWN.sub(rf'\g<1>{checksum(blank)}"'.encode(), blank)


def seal(path: Path) -> None:
    """Complete a file that was written with the metadata of `sums_of`."""
    header = Sealed.read(path).header
    with path.open("rb+") as file:
        file.write(sealed(header))
