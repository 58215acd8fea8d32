"""Write files atomically."""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from saefast.disk.sealed_tensors import seal, sealed, sums_of

PART = ".part"
"""Suffix of files that are being written, and of folders that hold them."""

_WAYS_OUT = {
    errno.ENOSPC: "free space on its disk, or choose a folder on another one, and try again",
    errno.EDQUOT: "free space within the quota, or choose a folder on another disk, and try again",
    errno.EROFS: "make its file system writable, or choose a folder on another one",
    errno.EXDEV: "the folder is spread over several file systems; choose one that is within one",
    errno.EEXIST: "a file is in its place; choose another folder",
    errno.EACCES: "change the permissions of its folder, or choose another one",
    errno.EPERM: "change the permissions of its folder, or choose another one",
}
_OTHERWISE = "check its disk, or choose a folder on another one, and try again"


@contextlib.contextmanager
def explained(path: Path, what: str = "could not be written") -> Iterator[None]:
    """Let an OSError name `path`, state what failed and why, and suggest what to do."""
    try:
        yield
    except OSError as error:
        way = _WAYS_OUT.get(error.errno or 0, _OTHERWISE)
        raise OSError(
            error.errno, f"{what}: {error.strerror or error}; {way}", str(path)
        ) from error


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


def remove_tensors(path: Path) -> None:
    """Remove a file of `write_tensors` if it exists, and remains of a killed process beside it."""
    shutil.rmtree(path.with_name(path.name + PART), ignore_errors=True)
    remove_file(path)


def append(path: Path, content: bytes) -> None:
    """Append to a file, in one write unless the disk gets full or the process is interrupted."""
    with explained(path), path.open("ab", buffering=0) as file:
        while content:
            content = content[file.write(content) :]


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, so that they survive a power failure.

    Raises:
        FileExistsError: `folder` is a file, or below one.
        ValueError: the path is not text, so that readers of safetensors could not open its files.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        raise ValueError(
            f"{str(folder)!a} must be text in the encoding of file names, "
            f"{sys.getfilesystemencoding()}; choose or rename a folder"
        )
    with explained(folder, "could not be created"):
        for each in reversed((folder, *folder.parents)):
            if not each.is_dir():
                each.mkdir(exist_ok=True)  # another process may be faster
                flush_folder(each.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, so that its new name survives a power failure."""
    with explained(target):
        source.rename(target)
        for folder in {source.parent, target.parent}:
            flush_folder(folder)


def remove_file(path: Path) -> None:
    """Remove a file if it exists."""
    with explained(path, "could not be removed"):
        path.unlink(missing_ok=True)


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
    with explained(path):
        try:
            for place in (part.parent, part):
                # A link in a folder of another user, whose target would be overwritten.
                if place.name.endswith(PART) and place.is_symlink():
                    place.unlink()
            write(part)
            flush_file(part)
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def _as_os_error(error: Exception) -> OSError:
    """Convert a SafetensorError, which states the system's error in its text only, to OSError."""
    number = next((n for n in errno.errorcode if f"os error {n})" in str(error)), errno.EIO)
    return OSError(number, os.strerror(number))


def flush_file(path: Path) -> None:
    """Flush the content of a file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that new names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
