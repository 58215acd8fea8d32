"""Locks on folders, which prevent concurrent writers from corrupting each other's files."""

import contextlib
import errno
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Self

from saefast.disk.atomic import make_folder

_PATIENCE = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Claim:
    """Lock on a folder, which is created if it does not exist.

    The lock is held until it is released or garbage-collected, or the process ends. A forked
    child cannot release it, and continues it only if this process is killed. The folder itself is
    locked, so no lock file is left behind. On file systems without locks there is no protection.

    Args:
        folder: folder to lock.
        shared: whether other shared locks on the folder are allowed at the same time.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self._new = None if folder.exists() else folder
        try:
            make_folder(folder)
        except (FileExistsError, NotADirectoryError) as error:
            reason = "is not a folder, or is below a file; choose another folder"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(folder)) from error
        self.release: Callable[[], object] = lambda: None
        if os.name == "nt":  # Windows cannot lock folders
            return
        from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

        descriptor = os.open(folder, os.O_RDONLY)
        self.release = weakref.finalize(self, _release, descriptor, os.getpid())
        try:
            flock(descriptor, (LOCK_SH if shared else LOCK_EX) | LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), folder.stat()):
                raise OSError  # the folder was removed by its previous holder and created again
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            self.release()
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                "is being written by another process; wait until it has finished, or choose "
                "another folder",
                str(folder),
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._new is not None:
            with contextlib.suppress(OSError):  # remove the new folder if it stayed empty
                self._new.rmdir()
        self.release()


def _release(descriptor: int, owner: int) -> None:
    """Unlock a folder, if this process is the owner of the lock, and close its descriptor.

    A forked child shares the lock by a descriptor of its own: unlocking in the child would unlock
    the folder of its parent, and closing in the parent would leave the lock to the child.
    """
    from fcntl import LOCK_UN, flock

    try:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):  # a file system without locks
                flock(descriptor, LOCK_UN)
    finally:
        os.close(descriptor)


def claim_when_free(folder: Path) -> Claim:
    """Lock a folder, after waiting until no other process has locked it."""
    while True:
        try:
            return Claim(folder)
        except BlockingIOError:
            time.sleep(_PATIENCE)
