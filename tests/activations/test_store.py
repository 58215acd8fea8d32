"""A store returns the rows written to it, from ordinary files, a window at a time."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.small_store import D, numbered, shard, write
from helpers.strategies import normal
from hypothesis import given
from hypothesis import strategies as st

from saefast.activations import StoreActivations, StoreWriter, verify_store


@given(
    appended=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    rows_per_shard=st.integers(1, 25),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_written_rows_are_read(
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


def test_shards_are_safetensors_and_the_index_is_json(tmp_path: Path) -> None:
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


def test_an_extra_can_be_the_target(tmp_path: Path) -> None:
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


def test_locate_names_the_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    source = StoreActivations(folder, block_rows=1, window_rows=1)
    for batch in islice(source.batches(1, seed=0), 25):
        number = int(batch.x[0, 0])
        place = f"{shard(folder, number // 10)}, row {number % 10}"
        assert batch.where == f"{place} to {place}"
        assert source.locate(int(batch.rows[0])) == place


def test_the_fingerprint_depends_on_the_shards(tmp_path: Path) -> None:
    source = StoreActivations(write(tmp_path / "a"))
    assert source.fingerprint == StoreActivations(write(tmp_path / "b")).fingerprint
    assert source.fingerprint != StoreActivations(write(tmp_path / "c", rows=24)).fingerprint
    assert source.fingerprint.startswith("store:")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured with /proc")
def test_reading_needs_memory_for_one_window(tmp_path: Path) -> None:
    """Read an epoch of a store of 128 MiB, 4 MiB at a time, in a separate process."""
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


@pytest.mark.parametrize("start", [0, 7])
def test_reading_ahead_gives_the_same_batches(tmp_path: Path, start: int) -> None:
    """A window that is read in advance changes no batch."""
    write(tmp_path, rows=500, rows_per_shard=70)
    source = StoreActivations(tmp_path, block_rows=3, window_rows=60)
    expected = list(islice(source.batches(32, seed=1, start=start), 40))

    def memory(name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    found = list(islice(source.batches(32, seed=1, start=start, memory=memory), 40))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.x, other.x)
        assert (one.rows == other.rows).all()


def test_a_file_truncated_while_reading_ahead_is_named(tmp_path: Path) -> None:
    """An error of the reading thread arrives in the stream."""
    write(tmp_path, rows=500, rows_per_shard=70)
    source = StoreActivations(tmp_path, block_rows=3, window_rows=60)
    batches = source.batches(32, seed=1, memory=lambda _, shape, dtype: torch.empty(shape))
    next(batches)
    for path in tmp_path.glob("*.safetensors"):
        os.truncate(path, 100)
    with pytest.raises(ValueError, match="truncated"):
        list(islice(batches, 40))
