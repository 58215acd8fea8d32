"""Saving of an SAE: kills leave no files, and two writers do not interfere."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import saefast
from saefast import SAE

SAVES = """
import os, stat, sys, time
from pathlib import Path
import saefast

def halt(*_):
    print("halted", flush=True)
    time.sleep(60)

def rename(self, target, rename=Path.rename):
    if target == path:
        halt()
    return rename(self, target)

path, format, where = Path(sys.argv[1]), *sys.argv[2:]
def flush(descriptor):
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        halt()

if where == "at a file":
    os.fsync = flush
else:
    Path.rename = rename
saefast.save_sae(saefast.SAE(7, 20, k=3, seed=9, centred=False), path, format=format)
"""


@contextmanager
def halted(path: Path, where: str, format: str = "sae_lens") -> Iterator[None]:
    """Provide a process that is saving; kill it at the end."""
    command = [sys.executable, "-c", SAVES, str(path), format, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=path.parent) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "halted\n"
            yield
        finally:
            process.kill()


def some_sae(seed: int) -> SAE:
    return SAE(7, 20, k=3, seed=seed, centred=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("where", "format", "name"),
    [
        ("at a file", "sae_lens", "sae"),
        ("at its name", "sae_lens", "sae"),
        ("at a file", "qwen_scope", "sae.pt"),
    ],
)
def test_files_of_a_killed_save_are_removed_by_the_next_one(
    tmp_path: Path, where: str, format: str, name: str, there: bool
) -> None:
    path, sae = tmp_path / name, some_sae(1)
    if there:
        saefast.save_sae(some_sae(0), path, format=format)
    with halted(path, where, format):
        pass
    assert f".{name}.part" in names(tmp_path)
    saefast.save_sae(sae, path, format=format)
    assert torch.equal(saefast.load_sae(path, k=3).W_dec, sae.W_dec)
    assert names(tmp_path) == [name]


def test_files_of_a_writing_process_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "sae"
    with halted(path, "at a file"):
        before = [entry for entry in (tmp_path / ".sae.part").rglob("*") if entry.is_file()]
        assert before
        with pytest.raises(BlockingIOError, match="another process"):
            saefast.save_sae(some_sae(1), path)
        assert all(entry.exists() for entry in before)
        saefast.save_sae(some_sae(1), tmp_path / "other")
    assert names(tmp_path) == [".sae.part", "other"]


def test_the_old_folder_is_restored_after_a_failed_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill between two renames, or a failed rename, also with a full disk afterwards."""
    before = some_sae(0)
    path = saefast.save_sae(before, tmp_path / "sae")
    with halted(path, "at its name"):
        assert not path.exists()
    with pytest.raises(ValueError, match="cannot be stored"):
        saefast.save_sae(SAE(7, 20, k=3, variant="gated"), path, format="sparsify")
    assert torch.equal(saefast.load_sae(path).W_dec, before.W_dec)
    assert names(tmp_path) == ["sae"]
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == path and self.name != "old":
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        saefast.save_sae(some_sae(1), path)
    assert torch.equal(saefast.load_sae(path).W_dec, before.W_dec)
    assert names(tmp_path) == ["sae"]


def test_a_replaced_sae_that_could_not_be_removed_is_removed_by_the_next_save(
    tmp_path: Path,
) -> None:
    """After a kill between the second renaming and the removal, or a failed removal."""
    path = saefast.save_sae(some_sae(0), tmp_path / "sae")
    saefast.save_sae(some_sae(0), tmp_path / ".sae.part" / "old")
    saefast.save_sae(some_sae(1), path)
    assert torch.equal(saefast.load_sae(path).W_dec, some_sae(1).W_dec)
    assert names(tmp_path) == ["sae"]


def test_a_part_that_could_not_be_removed_does_not_prevent_the_next_save(tmp_path: Path) -> None:
    path = saefast.save_sae(some_sae(0), tmp_path / "sae")
    (path / "sparsity.safetensors.part").mkdir()
    saefast.save_sae(some_sae(1), path)
    assert names(path) == ["cfg.json", "sae_weights.safetensors"]


def test_a_file_of_someone_else_is_not_taken_for_a_part(tmp_path: Path) -> None:
    path = saefast.save_sae(some_sae(0), tmp_path / "sae")
    (path / "notes.part").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.part; choose another path"):
        saefast.save_sae(some_sae(1), path)
    assert (path / "notes.part").read_text() == "mine"


def test_the_old_folder_stays_aside_if_it_cannot_be_moved_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saefast.save_sae(some_sae(0), tmp_path / "sae")
    aside = tmp_path / ".sae.part" / "old"
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match=f"the earlier SAE is in {aside} until it is saved again"):
            saefast.save_sae(some_sae(1), path)
    assert torch.equal(saefast.load_sae(aside).W_dec, some_sae(0).W_dec)
    with pytest.raises(ValueError, match="cannot be stored"):  # it is restored nevertheless
        saefast.save_sae(SAE(7, 20, k=3, variant="gated"), path, format="sparsify")
    assert torch.equal(saefast.load_sae(path).W_dec, some_sae(0).W_dec)
    assert names(tmp_path) == ["sae"]
