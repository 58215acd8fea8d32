"""Folders and errors of atomic writes."""

import errno
import os
from pathlib import Path

import pytest

from saefast.disk import atomic


def test_every_new_folder_is_flushed_to_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(atomic, "flush_folder", flushed.append)
    folder = tmp_path / "a" / "b" / "c"
    atomic.make_folder(folder)
    assert flushed == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    atomic.make_folder(folder)
    assert len(flushed) == 3
    monkeypatch.chdir(tmp_path)
    atomic.make_folder(Path("d"))
    assert (tmp_path / "d").is_dir()
    (tmp_path / "file").touch()
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileExistsError, match=r"could not be created.* choose another folder"):
            atomic.make_folder(taken)


def test_folders_have_names_that_are_text(tmp_path: Path) -> None:
    """Readers of safetensors cannot open the files of another folder."""
    with pytest.raises(ValueError, match=r"d\\udcebmo' must be text in the encoding of file names"):
        atomic.make_folder(tmp_path / os.fsdecode(b"d\xebmo"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.ENOSPC, "free space on its disk"),
        (errno.EROFS, "make its file system writable"),
        (errno.EIO, "check its disk"),
        (None, "check its disk"),
    ],
)
def test_errors_name_the_file_the_reason_and_a_remedy(number: int | None, way: str) -> None:
    message = f"could not be written: reason; {way}.*: 'a file'"
    with pytest.raises(OSError, match=message), atomic.explained(Path("a file")):
        raise OSError(number, "reason") if number else OSError("reason")


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for line in (b"one\n", b"two\n"):
        atomic.append(path, line)
    assert path.read_bytes() == b"one\ntwo\n"
