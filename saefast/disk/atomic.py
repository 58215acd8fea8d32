"""Write files atomically."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from saefast.disk.sealed_tensors import seal, sealed, sums_of

PART = ".part"
"""Suffix of files that are being written, and of folders that hold them."""


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: a killed process leaves the old or the new content.

    If the disk is full or the folder is not writable, the OSError names the file, and partial files
    are removed.
    """
    write_with(path, lambda part: part.write_bytes(content))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically by a function that writes to the path it is given."""
    _replace(path, path.with_name(path.name + PART), write)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically, without a second copy of the tensors in memory.

    The file holds checksums, see `saefast.disk.sealed_tensors`; equal tensors give equal bytes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        # save_file first writes a file with a random name beside its target. In a folder with a
        # fixed name, the next call can remove the files that a killed process left.
        shutil.rmtree(part.parent, ignore_errors=True)
        part.parent.mkdir()
        try:
            there = {name: value.contiguous().cpu() for name, value in tensors.items()}
            part.touch()
            mode = part.stat().st_mode  # permissions by umask, which save_file ignores
            save_file(there, part, sums_of(there, metadata))
            part.chmod(mode)
            seal(part)
        except SafetensorError as error:
            raise _as_os_error(error) from error

    scratch = path.with_name(path.name + PART)
    try:
        _replace(path, scratch / path.name, write)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_tensors_in_pieces(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write a safetensors file atomically, with checksums of pieces of its tensors as well.

    Args:
        path: the file.
        tensors: contiguous tensors on the CPU, of which a copy is made.

    Returns:
        Number of bytes of the file, and their SHA-256 in hexadecimal digits.
    """
    from safetensors.torch import save

    content = memoryview(save(dict(tensors), sums_of(tensors, pieces=True)))
    size = 8 + int.from_bytes(content[:8], "little")
    parts: list[bytes | memoryview] = [sealed(bytes(content[:size])), content[size:]]
    digest = hashlib.sha256()

    def write(part: Path) -> None:
        with part.open("wb") as file:
            for each in parts:
                file.write(each)

    write_with(path, write)
    for each in parts:
        digest.update(each)
    return len(content), digest.hexdigest()


def _replace(path: Path, part: Path, write: Callable[[Path], object]) -> None:
    try:
        try:
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"could not be written: {error.strerror}", str(path)) from error


def _as_os_error(error: Exception) -> OSError:
    """Convert a SafetensorError, which states the system's error in its text only, to OSError."""
    number = next((n for n in errno.errorcode if f"os error {n})" in str(error)), errno.EIO)
    return OSError(number, os.strerror(number))


def flush_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that new names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
