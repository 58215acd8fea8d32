"""Files that are written whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

PART = ".part"
"""How the name of a file ends that is still being written."""


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`: a killed process leaves what was there before, or all of the new.

    Where the disk is full or the folder not writable, the OSError names the file, and nothing of
    the attempt stays.
    """

    def write(part: Path) -> None:
        part.write_bytes(content)

    _replace_by(path, write)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The same with a safetensors file, without a second copy of the tensors in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        try:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)
        except SafetensorError as error:
            raise _as_os_error(error) from error

    _replace_by(path, write)


def _replace_by(path: Path, write: Callable[[Path], None]) -> None:
    part = path.with_name(path.name + PART)
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
