"""Folders as they may be after a power failure, from the log of a writer's calls.

POSIX promises only what was flushed: the content of a file by fsync of the file, its name by fsync
of its folder. A `Disk` follows what is in memory and what is on disk. It assumes the worst of
unflushed contents, that they are lost, and three cases for unflushed names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from helpers.faulty_disk import Call

CASES = ("flushed", "last", "all")
"""Names that are on disk: the flushed ones; these and the last call's; all"""


@dataclass(eq=False)
class File:
    """File, with the content that was flushed."""

    source: Path | None = None
    size: int = 0


@dataclass(eq=False)
class Folder:
    """Folder, with the entries in memory and those on disk."""

    now: dict[str, "File | Folder"] = field(default_factory=dict)
    flushed: dict[str, "File | Folder"] = field(default_factory=dict)


class Disk:
    """State of a folder in memory and on disk.

    Args:
        before: the folder at the beginning, all of which is on disk.
        work: path of the folder in the calls.
        kept: links to the flushed files by the number of the call.
    """

    def __init__(self, before: Path, work: Path, kept: Path) -> None:
        self._root = _read(before)
        self._work, self._kept = work, kept
        self._last: tuple[Folder, str, File | Folder | None] | None = None

    def apply(self, call: Call) -> None:
        """Follow a call of the log."""
        if call.error or call.number == 0:
            return
        folder, name = self._place(call.path)
        found = folder.now.get(name) if name else self._root
        if call.kind == "mkdir":
            self._set(folder, name, Folder())
        elif call.kind in ("create", "open"):
            if not isinstance(found, File):
                self._set(folder, name, File())
            elif call.kind == "create":
                found.size = 0
        elif call.kind == "remove":
            self._set(folder, name, None)
        elif call.kind == "rename":
            self._set(folder, name, None)
            self._set(*self._place(call.to), found)
        elif call.kind == "flush" and isinstance(found, Folder):
            found.flushed = dict(found.now)
        elif call.kind == "flush":
            # The file may have got its name by a call that was not seen.
            assert isinstance(found, File)
            found.source, found.size = self._kept / str(call.number), int(call.to)

    def _set(self, folder: Folder, name: str, entry: "File | Folder | None") -> None:
        _put(folder.now, name, entry)
        self._last = folder, name, entry

    def _place(self, path: str) -> tuple[Folder, str]:
        """Return the folder of a path in memory, and the name in it."""
        *parents, name = Path(path).relative_to(self._work).parts or ("",)
        folder = self._root
        for parent in parents:
            entry = folder.now[parent]
            assert isinstance(entry, Folder)
            folder = entry
        return folder, name

    def after_failure(self, case: str) -> dict[str, bytes | None]:
        """Return the contents of the files on disk by path, None for folders."""
        return dict(self._entries(self._root, "", case))

    def _entries(self, folder: Folder, path: str, case: str) -> Iterator[tuple[str, bytes | None]]:
        entries = dict(folder.now if case == "all" else folder.flushed)
        if case == "last" and self._last is not None and self._last[0] is folder:
            _put(entries, *self._last[1:])
        for name, entry in entries.items():
            if isinstance(entry, Folder):
                yield path + name, None
                yield from self._entries(entry, f"{path}{name}/", case)
            else:
                content = b"" if entry.source is None else entry.source.read_bytes()
                yield path + name, content[: entry.size]


def _put(entries: dict[str, File | Folder], name: str, entry: File | Folder | None) -> None:
    if entry is None:
        entries.pop(name, None)
    else:
        entries[name] = entry


def _read(path: Path) -> Folder:
    folder = Folder()
    for each in path.iterdir():
        entry = _read(each) if each.is_dir() else File(each, each.stat().st_size)
        folder.now[each.name] = folder.flushed[each.name] = entry
    return folder


def write_files(files: dict[str, bytes | None], folder: Path) -> None:
    """Write files by path, and folders."""
    for name, content in files.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
