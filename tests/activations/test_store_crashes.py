"""Stores survive crashes, full disks and unwritable folders."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_store import D, contents, numbered, shard, write

from saefast.activations import StoreWriter, verify_store


def test_a_partial_shard_is_ignored(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", rows=20)
    part = folder / f"{shard(folder, 2).name}.part"
    part.write_bytes(b"half")
    assert torch.equal(contents(folder), numbered(0, 20))
    with StoreWriter(folder, D, dtype=torch.float32, rows_per_shard=10, resume=True) as writer:
        assert writer.rows == 20
        assert not part.exists()
        writer.append(numbered(20, 35))
    assert torch.equal(contents(folder), numbered(0, 35))


def test_a_shard_without_its_index_is_written_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", rows=20)
    shard(folder, 2).write_bytes(b"whole, but the process ended before the index was written")
    write(folder, rows=10, resume=True)
    assert torch.equal(contents(folder), torch.cat([numbered(0, 20), numbered(0, 10)]))
    verify_store(folder)


KILLED = """
import sys, torch
from saefast.activations import StoreWriter
with StoreWriter(sys.argv[1], 4, dtype=torch.float32, rows_per_shard=10, resume=True) as writer:
    while True:
        first = writer.rows
        writer.append(torch.arange(first, first + 3.0)[:, None].expand(-1, 4))
        print(writer.rows, flush=True)
"""


def test_a_killed_writer_leaves_whole_shards_and_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    before = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", KILLED, folder], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) > before + 40:
                    process.kill()
                    break
        assert process.returncode == -signal.SIGKILL
        verify_store(folder)
        found = contents(folder)
        assert len(found) >= before + 40
        assert len(found) % 10 == 0
        assert torch.equal(found, numbered(0, len(found)))
        before = len(found)


def test_an_exception_leaves_whole_shards(tmp_path: Path) -> None:
    def fails() -> None:
        with StoreWriter(tmp_path / "store", D, dtype=torch.float32, rows_per_shard=10) as writer:
            writer.append(numbered(0, 25))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(contents(tmp_path / "store"), numbered(0, 20))


@pytest.mark.parametrize(
    ("works", "culprit"),
    [(0, r"00002\.safetensors"), (1, r"00002\.safetensors"), (2, r"index\.json")],
)
def test_a_full_disk_leaves_the_shards_before(
    works: int, culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the shard's content, at its rename, or at the index."""
    folder = tmp_path / "store"
    with StoreWriter(folder, D, dtype=torch.float32, rows_per_shard=10) as writer:
        writer.append(numbered(0, 25))
        with monkeypatch.context() as patched:
            calls: list[int] = []

            def full(descriptor: int) -> None:
                calls.append(descriptor)
                if len(calls) > works:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patched.setattr(os, "fsync", full)
            with pytest.raises(
                OSError, match=rf"No space left .*earlier shards: 2 with 20 rows.*{culprit}"
            ) as caught:
                writer.append(numbered(25, 30))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(ValueError, match="closed or has failed"):
            writer.append(numbered(30, 35))
    assert not list(folder.glob("*.part"))
    assert torch.equal(contents(folder), numbered(0, 20))
    write(folder, rows=5, resume=True)
    assert len(contents(folder)) == 25


def test_a_file_size_limit_is_an_error(tmp_path: Path) -> None:
    """The kernel refuses a write beyond a limit on the size of files, as on a full disk."""
    script = """
import resource, signal, sys, torch
from saefast.activations import StoreWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with StoreWriter(sys.argv[1], 4, dtype=torch.float32, rows_per_shard=1000) as writer:
    writer.append(torch.zeros(1000, 4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
    writer.append(torch.zeros(1000, 4))
"""
    folder = tmp_path / "store"
    command = [sys.executable, "-P", "-c", script, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "earlier shards: 1 with 1000 rows" in done.stderr
    assert not list(folder.glob("*.part"))
    assert len(contents(folder)) == 1000


def test_the_error_names_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        StoreWriter(tmp_path / "file" / "store", D)
    with pytest.raises(OSError, match="file"):
        StoreWriter(tmp_path / "file", D)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(PermissionError, match=r"could not be written.*index\.json"):
        StoreWriter(closed, D)
