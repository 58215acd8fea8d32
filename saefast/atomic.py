"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is still being written."""


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`: a killed process leaves what was there before, or all of the new.

    Where the disk is full or the folder not writable, the OSError names the file, and nothing of
    the attempt stays.
    """
    part = path.with_name(path.name + PART)
    try:
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"could not be written: {error.strerror}", str(path)) from error


def flush_folder(folder: Path) -> None:
    """Make sure that the names in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
