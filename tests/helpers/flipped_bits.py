"""Bits of files, flipped one at a time."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip a bit of the file, and restore it at the end."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(content)


def bits_of_parts(path: Path, parts: Mapping[str, bytes], flips: int) -> Iterator[tuple[str, int]]:
    """Yield names of parts in turn, each with a random bit of the bytes of the part.

    Parts are looked for in the file, which must contain them; "" is the whole file.
    """
    content = path.read_bytes()
    drawn = random.Random(path.name)
    names = sorted(parts)
    for number in range(flips):
        name = names[number % len(names)]
        begin = content.index(parts[name])
        yield name, 8 * begin + drawn.randrange(8 * len(parts[name]))
