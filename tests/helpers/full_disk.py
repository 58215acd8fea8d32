"""A disk that is full after a number of written files."""

import errno
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from saefast.disk import atomic


@contextmanager
def full_disk(files: int) -> Iterator[None]:
    """Let atomic writes fail after some files, with half of the next one left beside its place."""
    count, replace = itertools.count(), atomic._replace

    def write_or_fail(path: Path, part: Path, write: Callable[[Path], object]) -> None:
        if next(count) >= files:
            part.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        replace(path, part, write)

    with patch.object(atomic, "_replace", write_or_fail):
        yield
