"""Writing of an SAE's files in place of an earlier SAE, such that a kill leaves one of them."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from saefast import checks
from saefast.disk.atomic import PART, explained, make_folder, move
from saefast.disk.lock import Claim
from saefast.formats import FORMATS
from saefast.formats.source import beside_sae
from saefast.formats.weights import SAEWeights

_OLD = "old"


def write_sae(parts: SAEWeights, path: Path, format: str) -> Path:
    """Write the files of an SAE, and replace an SAE that is already there; see `save_sae`.

    Args:
        parts: weights and settings of the SAE.
        path: folder of the SAE; or its file, for formats that consist of one file.
        format: one of the names in `FORMATS`.

    Returns:
        The path.
    """
    checks.one_of("format", format, tuple(FORMATS))
    writer = FORMATS[format]
    if path.name in ("", ".."):
        raise ValueError(f"path must end in the name of a folder or file, got {str(path)!r}")
    one_file = writer.FILE is not None and path.suffix == Path(writer.FILE).suffix
    if not one_file:
        _may_be_replaced(path)
    make_folder(path.parent)
    with _room_beside(path) as room:
        with explained(path):
            new = Path(tempfile.mkdtemp(dir=room))
        writer.write(parts, new)
        if writer.FILE is not None and one_file:
            move(new / writer.FILE, path)
            return path
        with explained(path):
            new.chmod(0o755)
        try:
            if path.exists():
                move(path, room / _OLD)
            move(new, path)
        finally:
            _bring_back(room, path)
    return path


def _may_be_replaced(path: Path) -> None:
    """Raise a FileExistsError unless `path` is free or holds an SAE and nothing else."""
    if path.is_dir():
        own = {module.FILE for module in FORMATS.values()}
        names = ", ".join(
            [each for each in beside_sae(path) if each.removesuffix(PART) not in own][:8]
        )
        problem = f"holds {names}" if names else ""
    else:
        problem = "is a file" if path.exists() else ""
    if problem:
        raise FileExistsError(
            f"path must be a new folder or hold only an SAE, which is replaced, but {path} "
            f"{problem}; choose another path"
        )


@contextlib.contextmanager
def _room_beside(path: Path) -> Iterator[Path]:
    """Provide a temporary folder beside `path`, which is removed at the end.

    Its name is fixed, so that the next call removes what a killed process left; it is locked, so
    that no process removes files that another one is writing.

    Yields:
        The folder.
    """
    room = path.with_name(f".{path.name}{PART}")
    with Claim(room):
        _bring_back(room, path)
        # A killed process, or a disk that allowed no removal, may have left the replaced SAE here.
        shutil.rmtree(room / _OLD, ignore_errors=True)
        try:
            yield room
        finally:
            if path.exists() or not (room / _OLD).exists():  # else it has the only copy
                shutil.rmtree(room, ignore_errors=True)


def _bring_back(room: Path, path: Path) -> None:
    """Restore the old SAE at `path` if it was moved away and not replaced."""
    if (room / _OLD).exists() and not path.exists():
        try:
            move(room / _OLD, path)
        except OSError as error:
            if path.exists():
                raise
            where = f"the earlier SAE is in {room / _OLD} until it is saved again"
            raise OSError(error.errno, f"{error.strerror}; {where}", str(path)) from error
