"""Reads of bytes from files, which are compared with the checksums of pieces if there are any."""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from saefast.disk.checksums import damaged, numbers, verifying
from saefast.disk.sealed_tensors import HEADER, PIECE, Sealed

ARGUMENT = "verify_reads=False"
"""Argument of readers that skips the comparison."""


class Pieces(NamedTuple):
    """Position of a tensor in a file, and the checksums of its pieces."""

    name: str
    begin: int
    """first byte of the tensor in the file"""
    size: int
    """number of its bytes"""
    sums: np.ndarray
    """[pieces] uint64"""

    def read(self, path: Path, offset: int, memory: memoryview) -> None:
        """Fill `memory` from byte `offset` of the file on, all of which belong to the tensor.

        Pieces that are needed in part are read whole.
        """
        read_exactly(path, offset, memory)
        first, end = offset - self.begin, offset - self.begin + len(memory)
        if first == end:
            return
        pieces = range(first // PIECE, -(-end // PIECE))
        content: list[bytearray | memoryview] = []
        for piece in pieces:
            begin, stop = piece * PIECE, min((piece + 1) * PIECE, self.size)
            inside = memory[max(begin - first, 0) : stop - first]
            if len(inside) == stop - begin:
                content.append(inside)
                continue
            whole = bytearray(stop - begin)
            read_exactly(path, self.begin + begin, memoryview(whole))
            start = max(first - begin, 0)
            whole[start : start + len(inside)] = inside
            content.append(whole)
        expected = self.sums[pieces.start : pieces.stop].tolist()
        # One thread: this is read ahead while the training uses the others.
        for piece, found, known in zip(pieces, numbers(content, 1), expected, strict=True):
            if found != known:
                begin = self.begin + piece * PIECE
                where = f"{path}: {self.name}, in the {PIECE} bytes from byte {begin} on,"
                raise damaged(where, ARGUMENT)


class Sums:
    """Checksums of the pieces of all tensors of a safetensors file, as far as it has them.

    Args:
        path: the file, whose header is known to be valid.

    Raises:
        ValueError: its header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._sealed = Sealed.read(path)
        if self._sealed.has_checksums and not self._sealed.intact:
            raise damaged(f"{path}: {HEADER}", ARGUMENT)

    @classmethod
    def of(cls, path: Path, verify: bool) -> Self | None:
        """Return the checksums of a file; None if they are not to be compared."""
        return cls(path) if verify and verifying() else None

    def pieces(self, name: str, begin: int, size: int) -> Pieces | None:
        """Return the checksums of a tensor of `size` bytes that begin at byte `begin`."""
        sums = self._sealed.pieces_of(name)
        return None if sums is None else Pieces(name, begin, size, sums)


def read_exactly(path: Path, offset: int, memory: memoryview) -> None:
    """Fill `memory` from byte `offset` of the file on."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while memory:
            got = file.readinto(memory)
            if not got:
                raise ValueError(
                    f"{path} ended {len(memory)} bytes early: it was truncated while being read; "
                    f"write it again"
                )
            memory = memory[got:]
