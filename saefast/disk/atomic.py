"""Write files atomically."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

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
    """Write a safetensors file atomically, without a second copy of the tensors in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        # save_file first writes a file with a random name beside its target. In a folder with a
        # fixed name, the next call can remove what a killed process left.
        shutil.rmtree(part.parent, ignore_errors=True)
        part.parent.mkdir()
        try:
            there = {name: value.contiguous().cpu() for name, value in tensors.items()}
            part.touch()
            mode = part.stat().st_mode  # permissions by umask, which save_file ignores
            save_file(there, part, metadata)
            part.chmod(mode)
        except SafetensorError as error:
            raise _as_os_error(error) from error

    scratch = path.with_name(path.name + PART)
    try:
        _replace(path, scratch / path.name, write)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
