"""Two writers of one folder: the second raises, and files of the first are not changed."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from saefast import TrainConfig, train_saes
from saefast.activations import StoreActivations, StoreWriter
from saefast.disk.lock import Claim

ROWS = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(latents=16, k=2, tokens=512, batch_size=64)


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with Claim(folder):
        with pytest.raises(BlockingIOError, match=r"another process.*another folder") as raised:
            Claim(folder)
        assert raised.value.filename == str(folder)
        Claim(tmp_path / "other").release()
    with Claim(folder):
        pass
    assert list(folder.iterdir()) == []


def fails(folder: Path) -> None:
    with Claim(folder):
        if folder.name == "used":
            (folder / "file").write_text("rows")
        raise RuntimeError


def test_an_unused_new_folder_is_removed(tmp_path: Path) -> None:
    """Existing folders and written files stay."""
    (tmp_path / "old").mkdir()
    for name in ("new", "old", "used"):
        with pytest.raises(RuntimeError):
            fails(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "used"]
    with Claim(tmp_path / "quiet"):
        pass
    assert (tmp_path / "quiet").is_dir()


def test_an_unreferenced_claim_is_released(tmp_path: Path) -> None:
    held = Claim(tmp_path)
    del held
    Claim(tmp_path).release()


def test_a_killed_process_releases_its_claim(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from saefast.disk.lock import Claim\n"
        f"held = Claim(pathlib.Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            Claim(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    Claim(tmp_path).release()


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[None]:
    """Fork a child that acts and then lives until the end of the context, as a loader's worker."""
    acted, acts = os.pipe()
    ended, ends = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ends)
            act()
            os.write(acts, b"acted")
            os.read(ended, 1)
        finally:
            os._exit(0)
    os.close(acts)
    try:
        assert os.read(acted, 5) == b"acted"
        yield
    finally:
        for descriptor in (ends, ended, acted):
            os.close(descriptor)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork.* may lead to deadlocks:DeprecationWarning")
def test_a_living_child_does_not_keep_a_released_claim(tmp_path: Path) -> None:
    with ExitStack() as children:
        with Claim(tmp_path):
            children.enter_context(forked(lambda: None))
        Claim(tmp_path).release()
        unreferenced = Claim(tmp_path)
        children.enter_context(forked(lambda: None))
        del unreferenced
        Claim(tmp_path).release()


@pytest.mark.filterwarnings("ignore:.*fork.* may lead to deadlocks:DeprecationWarning")
@pytest.mark.parametrize("collected", [False, True])
def test_a_child_does_not_release_the_claim_of_its_parent(tmp_path: Path, collected: bool) -> None:
    held = [Claim(tmp_path)]
    with forked(held.clear if collected else held[0].release):
        with pytest.raises(BlockingIOError, match="another process"):
            Claim(tmp_path)
        held[0].release()
        Claim(tmp_path).release()


def test_without_support_for_locks_all_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with Claim(tmp_path):
        Claim(tmp_path).release()


def test_a_lock_on_a_removed_folder_is_not_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flock = tmp_path / "folder", fcntl.flock

    def after_another(descriptor: int, how: int) -> None:
        folder.rmdir()
        folder.mkdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_another)
    with pytest.raises(BlockingIOError, match="another process"):
        Claim(folder)


def test_a_store_has_one_writer(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", 8) as writer:
        writer.append(ROWS)
        with pytest.raises(BlockingIOError, match="another process"):
            StoreWriter(tmp_path / "store", 8, resume=True)
    with StoreWriter(tmp_path / "store", 8, resume=True) as writer:
        writer.append(ROWS)
    assert StoreActivations(tmp_path / "store").rows == 512


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    with Claim(tmp_path / "run"), pytest.raises(BlockingIOError, match="another process"):
        train_saes(ROWS, CONFIG, out=tmp_path / "run", progress=False)
    assert list((tmp_path / "run").iterdir()) == []
    train_saes(ROWS, CONFIG, out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "run.json").is_file()
