"""A folder that one writer at a time may have: two at once would spoil each other's files."""

import contextlib
import errno
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Self

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Claim:
    """Holds a folder, made if it is not there, until it is let go, forgotten, or the process ends.

    The folder itself is locked: nothing is left in it, however the process ends. File systems that
    know no locks keep nobody out.
    """

    def __init__(self, folder: Path) -> None:
        self._new = None if folder.exists() else folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            reason = "is no folder, or lies below a file; choose another one"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(folder)) from error
        self.release: Callable[[], object] = lambda: None
        if os.name == "nt":  # folders cannot be locked there
            return
        from fcntl import LOCK_EX, LOCK_NB, flock

        descriptor = os.open(folder, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), folder.stat()):
                raise OSError  # who had it before has removed it, and somebody made another
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            self.release()
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                "is being written by somebody else; wait until that is finished, or choose another "
                "folder",
                str(folder),
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._new is not None:
            with contextlib.suppress(OSError):  # nothing came of it, so nothing stays
                self._new.rmdir()
        self.release()
