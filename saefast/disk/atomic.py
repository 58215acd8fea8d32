"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

PART = ".part"
"""How the name ends of what is still being written, a file or a folder that holds it."""


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`: a killed process leaves what was there before, or all of the new.

    Where the disk is full or the folder not writable, the OSError names the file, and nothing of
    the attempt stays.
    """
    write_with(path, lambda part: part.write_bytes(content))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """The same with whatever `write` puts at the path it is given."""
    _replace(path, path.with_name(path.name + PART), write)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """The same with a safetensors file, without a second copy of the tensors in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        # save_file begins with a file of a random name beside the one it is asked for. In a
        # folder of a known name the next attempt finds what a killed process left.
        shutil.rmtree(part.parent, ignore_errors=True)
        part.parent.mkdir()
        try:
            there = {name: value.contiguous().cpu() for name, value in tensors.items()}
            part.touch()
            mode = part.stat().st_mode  # what others may do with files here; save_file asks nobody
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
    """safetensors tells the operating system's error only in its text."""
    number = next((n for n in errno.errorcode if f"os error {n})" in str(error)), errno.EIO)
    return OSError(number, os.strerror(number))


def flush_folder(folder: Path) -> None:
    """Make sure that the names in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
