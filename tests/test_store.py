"""A store survives what happens to disks and processes, and says what is wrong with it."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal
from torch import Tensor

from saefast.activations import StoreActivations, StoreWriter, verify_store

D = 4


def numbered(first: int, end: int) -> Tensor:
    """Row i holds i."""
    return torch.arange(first, end, dtype=torch.float32)[:, None].expand(-1, D)


def write(folder: Path, rows: int = 25, rows_per_shard: int = 10, **more: object) -> Path:
    with StoreWriter(
        folder, D, dtype=torch.float32, rows_per_shard=rows_per_shard, **more
    ) as writer:
        writer.append(numbered(0, rows))
    return folder


def contents(folder: Path) -> Tensor:
    source = StoreActivations(folder)
    return source.read("activations", 0, source.rows)


def shard(folder: Path, number: int) -> Path:
    return folder / f"activations-{number:05d}.safetensors"


@given(
    appended=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    rows_per_shard=st.integers(1, 25),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_what_is_written_is_read(
    appended: list[int],
    rows_per_shard: int,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("run") / "store"
    rows = [normal((n, D), i, torch.float32) for i, n in enumerate(appended)]
    tokens = [torch.arange(n, dtype=torch.int32) * i for i, n in enumerate(appended)]
    with StoreWriter(folder, D, dtype=dtype, rows_per_shard=rows_per_shard) as writer:
        for part, token in zip(rows, tokens, strict=True):
            writer.append(part, tokens=token, places=part[:, :2])
    if not sum(appended):
        with pytest.raises(ValueError, match="holds no rows"):
            StoreActivations(folder)
        return
    verify_store(folder)
    source = StoreActivations(folder)
    assert source.rows == sum(appended)
    assert len(source.index.shards) == -(-source.rows // rows_per_shard)
    first, end = source.rows // 3, source.rows
    for name, values in (
        ("activations", torch.cat(rows).to(dtype)),
        ("tokens", torch.cat(tokens)),
        ("places", torch.cat(rows)[:, :2]),
    ):
        assert torch.equal(source.read(name, first, end), values[first:end])


def test_shards_are_ordinary_safetensors_and_the_index_ordinary_json(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write(tmp_path / "store", metadata={"model": "gpt2"})
    assert torch.equal(load_file(shard(folder, 2))["activations"], numbered(20, 25))
    index = json.loads((folder / "index.json").read_text())
    assert (index["version"], index["d"], index["dtype"], index["rows"]) == (1, D, "float32", 25)
    assert [entry["rows"] for entry in index["shards"]] == [10, 10, 5]
    assert index["metadata"] == {"model": "gpt2"}
    assert sorted(path.name for path in folder.iterdir()) == [
        *(shard(folder, number).name for number in range(3)),
        "index.json",
    ]


def test_a_target_comes_from_an_extra(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", D, rows_per_shard=10) as writer:
        x = numbered(0, 25)
        writer.append(x, after=x[:, :3] * 2, tokens=torch.arange(25))
    source = StoreActivations(tmp_path / "store", target="after")
    for batch in islice(source.batches(7, seed=0), 9):
        assert batch.target is not None
        assert torch.equal(batch.target, batch.x[:, :3] * 2)
    with pytest.raises(ValueError, match="target must be one of after, tokens, got 'before'"):
        StoreActivations(tmp_path / "store", target="before")
    with pytest.raises(ValueError, match=r"target must name an extra \[n, d_out\], got 'tokens'"):
        StoreActivations(tmp_path / "store", target="tokens")


def test_where_names_the_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    source = StoreActivations(folder, block_rows=1, window_rows=1)
    for batch in islice(source.batches(1, seed=0), 25):
        number = int(batch.x[0, 0])
        place = f"{shard(folder, number // 10)}, row {number % 10}"
        assert batch.where == f"{place} to {place}"
        assert source.locate(int(batch.rows[0])) == place


# Processes that end early


def test_a_part_of_a_shard_is_no_harm(tmp_path: Path) -> None:
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


def test_a_killed_writer_leaves_whole_shards_and_goes_on(tmp_path: Path) -> None:
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


# Disks that fail


@pytest.mark.parametrize(
    ("works", "culprit"),
    [(0, r"00002\.safetensors"), (1, r"00002\.safetensors"), (2, r"index\.json")],
)
def test_a_full_disk_leaves_the_shards_before(
    works: int, culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full at the shard's content, at its name, or at the index that would list it."""
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
                OSError, match=rf"No space left .*2 shards before it, 20 rows.*{culprit}"
            ) as caught:
                writer.append(numbered(25, 30))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(ValueError, match="closed, or failed before"):
            writer.append(numbered(30, 35))
    assert not list(folder.glob("*.part"))
    assert torch.equal(contents(folder), numbered(0, 20))
    write(folder, rows=5, resume=True)
    assert len(contents(folder)) == 25


def test_a_file_larger_than_allowed_is_an_error(tmp_path: Path) -> None:
    """The same as a full disk, by the kernel's own word: a limit on the size of files."""
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
    assert "1 shards before it, 1000 rows" in done.stderr
    assert not list(folder.glob("*.part"))
    assert len(contents(folder)) == 1000


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
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


# Damage


def cut(folder: Path) -> None:
    path = shard(folder, 1)
    path.write_bytes(path.read_bytes()[:-3])


def longer(folder: Path) -> None:
    with shard(folder, 1).open("ab") as file:
        file.write(b"x")


def missing(folder: Path) -> None:
    shard(folder, 1).unlink()


def other_dtype(folder: Path) -> None:
    path = shard(folder, 1)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))


def other_shape(folder: Path) -> None:
    path = shard(folder, 1)
    path.write_bytes(path.read_bytes().replace(b"[10,4]", b"[4,10]"))


def other_name(folder: Path) -> None:
    path = shard(folder, 1)
    path.write_bytes(path.read_bytes().replace(b"activations", b"activatiXns"))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (cut, ValueError, "is truncated"),
        (longer, ValueError, "longer than it was"),
        (missing, FileNotFoundError, "is missing; the index lists it with 10 rows"),
        (other_dtype, ValueError, r"must be torch.float32 \(10, 4\).* got torch.int32 \(10, 4\)"),
        (other_shape, ValueError, r"got torch.float32 \(4, 10\)"),
        (other_name, ValueError, "got nothing"),
    ],
)
def test_damage_is_found_on_opening(
    damage: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "store")
    damage(folder)
    with pytest.raises(error, match=rf"activations-00001\.safetensors.*{message}"):
        StoreActivations(folder)


@pytest.mark.parametrize("place", [9, -1])
def test_a_flipped_bit_is_found_by_verify(place: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    verify_store(folder)
    StoreActivations(folder, verify=True)
    content = bytearray(shard(folder, 1).read_bytes())
    content[place] ^= 1
    shard(folder, 1).write_bytes(content)
    shard(folder, 2).unlink()
    with pytest.raises(ValueError, match=r"2 of 3 .*00001.* checksum .*00002.* is missing"):
        verify_store(folder)
    with pytest.raises(ValueError, match="2 of 3 shards are damaged"):
        StoreActivations(folder, verify=True)


def test_verify_shows_progress_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "store")
    verify_store(folder)
    assert capsys.readouterr().err == ""
    verify_store(folder, progress=True)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "version 2 is not 1"),
        ("d", "four", "d must be a positive integer"),
        ("dtype", "float8", "float8"),
        ("dtype", "int32", "do not fit"),
        ("rows", 26, "26 rows"),
        ("shards", [{"name": "x"}], "missing 3 required"),
        ("shards", [{"name": "../x", "rows": 1, "bytes": 1, "sha256": ""}], "another folder"),
        ("shards", [{"name": "x", "rows": -1, "bytes": 1, "sha256": ""}], "positive"),
        ("extras", None, "AttributeError"),
    ],
)
def test_a_bad_index_is_named(key: str, value: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "store") / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=rf"index\.json is not .*{message}"):
        StoreActivations(tmp_path / "store")


def test_an_index_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "store") / "index.json"
    for text in ("", "[]", "{}", path.read_text()[:-40]):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json is not the index"):
            StoreActivations(tmp_path / "store")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json does not exist"):
        StoreActivations(tmp_path / "store")


def test_the_fingerprint_is_that_of_the_shards(tmp_path: Path) -> None:
    source = StoreActivations(write(tmp_path / "a"))
    assert source.fingerprint == StoreActivations(write(tmp_path / "b")).fingerprint
    assert source.fingerprint != StoreActivations(write(tmp_path / "c", rows=24)).fingerprint
    assert source.fingerprint.startswith("store:")


# What a writer is told


def test_a_store_is_not_written_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    with pytest.raises(FileExistsError, match="is a store already; go on with resume=True"):
        write(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds thesis\.tex and no index\.json"):
            write(tmp_path / "other", resume=resume)
    with pytest.raises(ValueError, match="holds rows of 4 float32, and cannot go on with d=5"):
        StoreWriter(folder, 5, dtype=torch.float32, resume=True)
    with pytest.raises(ValueError, match="dtype=bfloat16"):
        StoreWriter(folder, D, resume=True)
    assert torch.equal(contents(folder), numbered(0, 25))


@pytest.mark.parametrize(
    ("rows", "extras", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "rows must be a torch.Tensor"),
        (torch.zeros(2, D).int(), {}, TypeError, "got int32"),
        (torch.zeros(2, 3), {}, ValueError, "rows must have size 4 in dimension 1"),
        (torch.zeros(D), {}, ValueError, r"shape \[n, d\]"),
        (torch.zeros(2, D), {}, ValueError, r"same extras, tokens int32 \['n'\], got none"),
        (torch.zeros(2, D), {"tokens": torch.zeros(2)}, ValueError, "got tokens float32"),
        (torch.zeros(2, D), {"tokens": torch.zeros(3)}, ValueError, "as many rows as rows, 2"),
        (torch.zeros(2, D), {"tokens": [1, 2]}, TypeError, "tokens must be a torch.Tensor"),
        (torch.zeros(2, D), {"activations": torch.zeros(2)}, ValueError, "must not be named"),
    ],
)
def test_bad_rows_are_refused_and_nothing_of_them_kept(
    rows: object, extras: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with StoreWriter(tmp_path / "store", D, dtype=torch.float32, rows_per_shard=10) as writer:
        writer.append(numbered(0, 3), tokens=torch.zeros(3, dtype=torch.int32))
        with pytest.raises(error, match=message):
            writer.append(rows, **extras)
        assert writer.rows == 3
        writer.append(numbered(3, 12), tokens=torch.zeros(9, dtype=torch.int32))
    assert torch.equal(contents(tmp_path / "store"), numbered(0, 12))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"d": 0}, ValueError, "d must be at least 1"),
        ({"d": 1.5}, TypeError, "d must be an int"),
        ({"rows_per_shard": 0}, ValueError, "rows_per_shard must be at least 1"),
        ({"dtype": torch.int8}, ValueError, "got int8"),
        ({"dtype": "bfloat16"}, TypeError, "torch.dtype, got str"),
        ({"metadata": {"model": torch}}, TypeError, "metadata must be what JSON can say"),
    ],
)
def test_bad_settings_are_named(
    arguments: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        StoreWriter(**{"path": tmp_path / "store", "d": D, **arguments})
    assert not (tmp_path / "store").exists()


def test_half_precision_makes_no_infinity(tmp_path: Path) -> None:
    rows = torch.zeros(3, D)
    rows[1, 2] = 7e4
    with StoreWriter(tmp_path / "store", D, dtype=torch.float16) as writer:
        with pytest.raises(ValueError, match=r"row 1 holds 70000; use .*bfloat16"):
            writer.append(rows)
        rows[1, 2] = torch.inf
        writer.append(rows)
    assert contents(tmp_path / "store")[1, 2] == torch.inf


def test_a_resumed_store_keeps_its_extras(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    tokens = torch.zeros(5, dtype=torch.int32)
    with StoreWriter(folder, D, metadata={"model": "gpt2"}) as writer:
        writer.append(numbered(0, 5), tokens=tokens)
    with StoreWriter(folder, D, resume=True) as writer:
        with pytest.raises(ValueError, match="same extras"):
            writer.append(numbered(0, 5))
        writer.append(numbered(0, 5), tokens=tokens)
    assert StoreActivations(folder).index.metadata == {"model": "gpt2"}
    assert StoreActivations(folder).rows == 10


@pytest.mark.skipif(sys.platform != "linux", reason="what is in memory is told by /proc")
def test_reading_takes_a_window_of_memory(tmp_path: Path) -> None:
    """An epoch of a store of 128 MiB, read 4 MiB at a time, in a process of its own."""
    script = """
import os, sys
from itertools import islice
from pathlib import Path
from saefast.activations import StoreActivations
source = StoreActivations(sys.argv[1], block_rows=64, window_rows=4096)
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = pages()
most = max(pages() for batch in islice(source.batches(1024, seed=0), source.rows // 1024))
print((most - before) * os.sysconf("SC_PAGESIZE"))
"""
    with StoreWriter(tmp_path / "store", 256, dtype=torch.float32) as writer:
        for first in range(0, 1 << 17, 1 << 14):
            writer.append(torch.zeros(1 << 14, 256) + first)
    command = [sys.executable, "-P", "-c", script, tmp_path / "store"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 64 << 20
