"""Check of the header of a GGUF file, before a reader that trusts it allocates what it claims.

The header has key-value pairs, and the name, shape, type and position of each tensor. Lengths and
counts in it are compared with the length of the file before they are used.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from saefast.lm.requirements import needed

_VERSIONS = (2, 3)
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # formats of `struct`
_STRING, _ARRAY = 8, 9
_ALIGNMENT = "general.alignment"
_ARCHITECTURE = "general.architecture"
_DEFAULT_ALIGNMENT = 32
_TENSORS = 2**16
_PAIRS = 2**16
_LONGEST_NAME = 2**16 - 1
_LONGEST_TEXT = 2**24  # of a single value, such as a licence or a template
_LONGEST_ITEM = 2**12  # of a string in an array, such as a token, whose parts may be compared
_ITEMS = 2**22  # of all arrays: readers make Python objects of them
_DIMENSIONS = 4


@dataclass(frozen=True)
class GGUFSizes:
    """Numbers in the header that bound the size of the model."""

    tensors: int
    """number of tensors"""
    values: int
    """number of values of all tensors"""


def check_gguf(path: Path) -> GGUFSizes:
    """Check the header of a GGUF file against its length.

    Args:
        path: GGUF file of version 2 or 3, of either byte order.

    Returns:
        Number of tensors and of their values.

    Raises:
        ValueError: if the file is truncated, or its header is not valid, or claims more than the
            file holds. The message names the file.
    """
    with path.open("rb") as file:
        try:
            return _Header(file, path.stat().st_size).sizes()
        except ValueError as error:
            raise ValueError(
                f"{path} is truncated or not a valid GGUF file: {error}; get the file again"
            ) from error


class _Header:
    """Header of an open file, read from its beginning to its end."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._length = length
        self._order = "<"
        self._items = 0

    def sizes(self) -> GGUFSizes:
        """Check everything, and return the sizes."""
        if self._bytes(4, "magic") != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I", "version")
        if version & 0xFFFF == 0:  # of the other byte order
            self._order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS:
            raise ValueError(f"version must be one of {_VERSIONS}, got {version}")
        tensors = self._count("number of tensors", _TENSORS)
        pairs = self._pairs(self._count("number of key-value pairs", _PAIRS))
        alignment = pairs.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"{_ALIGNMENT} must be a power of two, got {alignment}")
        architecture = pairs.get(_ARCHITECTURE)
        if not isinstance(architecture, str) or not architecture:
            raise ValueError(f"{_ARCHITECTURE} must be a name, got {architecture!r}")
        blocks = pairs.get(f"{architecture}.block_count", 0)
        if type(blocks) is not int or not 0 <= blocks <= tensors:
            raise ValueError(f"{architecture}.block_count is {blocks}, for {tensors} tensors")
        return GGUFSizes(tensors, self._tensors(tensors, alignment))

    def _pairs(self, count: int) -> dict[str, Any]:
        """Return the values by key, without those of arrays."""
        found: dict[str, Any] = {}
        keys: set[str] = set()
        for _ in range(count):
            key = self._text("key", _LONGEST_NAME)
            if key in keys:
                raise ValueError(f"key {key[:80]!r} occurs twice")
            keys.add(key)
            kind = self._number("I", f"type of {key[:80]!r}")
            if kind == _STRING:
                found[key] = self._text(f"value of {key[:80]!r}", _LONGEST_TEXT)
            elif kind == _ARRAY:
                self._array(f"value of {key[:80]!r}")
            else:
                found[key] = self._number(_scalar(kind), f"value of {key[:80]!r}")
        return found

    def _array(self, what: str) -> None:
        kind = self._number("I", f"type of the {what}")
        if kind == _ARRAY:
            raise ValueError(f"the {what} is an array of arrays")
        count = self._count(f"length of the {what}", _ITEMS - self._items)
        self._items += count
        if kind != _STRING:
            self._skip(count * struct.calcsize(f"={_scalar(kind)}"), what)
            return
        for _ in range(count):
            self._skip(self._count(f"length of an item of the {what}", _LONGEST_ITEM), what)

    def _tensors(self, count: int, alignment: int) -> int:
        """Return the number of values of all tensors."""
        sizes = needed("gguf").constants.GGML_QUANT_SIZES  # values and bytes of a block, by type
        names: set[str] = set()
        places: list[tuple[int, int, str]] = []
        values = 0
        for _ in range(count):
            name = self._text("name of a tensor", _LONGEST_NAME)
            if name in names:
                raise ValueError(f"tensor {name[:80]!r} occurs twice")
            names.add(name)
            what = f"tensor {name[:80]!r}"
            dimensions = self._number("I", f"number of dimensions of {what}")
            if not 1 <= dimensions <= _DIMENSIONS:
                raise ValueError(
                    f"{what} must have 1 to {_DIMENSIONS} dimensions, got {dimensions}"
                )
            shape = [self._number("Q", f"shape of {what}") for _ in range(dimensions)]
            kind = self._number("I", f"type of {what}")
            if kind not in sizes:
                raise ValueError(f"{what} has type {kind}, which is unknown")
            in_block, bytes_of_block = sizes[kind]
            if 0 in shape or shape[0] % in_block:
                raise ValueError(f"{what} has shape {shape}, in blocks of {in_block} values")
            begin = self._number("Q", f"offset of {what}")
            if begin % alignment:
                raise ValueError(f"{what} has offset {begin}, no multiple of {alignment}")
            places.append((begin, math.prod(shape) // in_block * bytes_of_block, name))
            values += math.prod(shape)
        data = -(-self._file.tell() // alignment) * alignment
        free = data
        for begin, length, name in sorted(places):
            if data + begin < free:
                raise ValueError(f"tensor {name[:80]!r} overlaps another")
            free = data + begin + length
            if free > self._length:
                raise ValueError(
                    f"tensor {name[:80]!r} ends at byte {free}, of a file of {self._length}"
                )
        return values

    def _count(self, what: str, most: int) -> int:
        """Read a number of things that need a byte each at least."""
        count: int = self._number("Q", what)
        most = min(most, self._length - self._file.tell())
        if count > most:
            raise ValueError(f"the {what} is {count}, where at most {most} are possible")
        return count

    def _text(self, what: str, longest: int) -> str:
        return self._bytes(self._count(f"length of the {what}", longest), what).decode()

    def _number(self, code: str, what: str) -> Any:
        code = self._order + code
        return struct.unpack(code, self._bytes(struct.calcsize(code), what))[0]

    def _bytes(self, length: int, what: str) -> bytes:
        read = self._file.read(length)
        if len(read) < length:
            raise ValueError(f"it ends in the {what}")
        return read

    def _skip(self, length: int, what: str) -> None:
        if self._file.seek(length, 1) > self._length:
            raise ValueError(f"it ends in the {what}")


def _scalar(kind: int) -> str:
    """Return the format of a type for `struct`."""
    if kind not in _SCALARS:
        raise ValueError(f"type {kind} of a value is unknown")
    return _SCALARS[kind]
