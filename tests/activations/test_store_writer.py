"""The writer of a store overwrites nothing, keeps no bad rows and always releases its folder."""

import errno
import os
from pathlib import Path

import pytest
import torch
from helpers.small_store import D, contents, numbered, write

from saefast.activations import StoreActivations, StoreWriter


def test_a_store_is_not_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    with pytest.raises(
        FileExistsError, match=r"index\.json already exists; continue with resume=True"
    ):
        write(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds thesis\.tex but no index\.json"):
            write(tmp_path / "other", resume=resume)
    with pytest.raises(
        ValueError, match="holds rows of 4 float32 and cannot be continued with d=5"
    ):
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
def test_bad_rows_are_refused_and_not_kept(
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
        ({"metadata": {"model": torch}}, TypeError, "metadata must be serialisable as JSON"),
    ],
)
def test_errors_name_bad_settings(
    arguments: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        StoreWriter(**{"path": tmp_path / "store", "d": D, **arguments})
    assert not (tmp_path / "store").exists()


def test_values_beyond_half_precision_raise(tmp_path: Path) -> None:
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


def test_a_refused_writer_releases_its_folder(tmp_path: Path) -> None:
    """A kept error keeps the failed writer: its frames refer to it."""
    folder = write(tmp_path / "store")
    with pytest.raises(FileExistsError, match="continue with resume=True") as kept:
        write(folder)
    write(folder, resume=True)
    assert kept.value.__traceback__ is not None
    assert len(contents(folder)) == 50


def test_an_interrupted_start_releases_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "_write_index", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            write(tmp_path / "store")
    write(tmp_path / "store")
    assert kept.value.__traceback__ is not None
    assert len(contents(tmp_path / "store")) == 25


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("left_by", "error"),
    [
        ("with", FULL),
        ("with", KeyboardInterrupt()),
        ("close", FULL),
        ("close", MemoryError()),
        ("append", FULL),
    ],
)
def test_a_failed_shard_releases_the_folder(
    left_by: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    writer = StoreWriter(folder, D, dtype=torch.float32, rows_per_shard=10)
    writer.append(numbered(0, 15))

    def fails(*_: object) -> None:
        raise error

    def leave() -> None:
        if left_by == "with":
            with writer:
                pass
        elif left_by == "close":
            writer.close()
        else:
            writer.append(numbered(15, 25))

    with monkeypatch.context() as patched:
        patched.setattr("saefast.activations.writer.write_shard", fails)
        with pytest.raises(type(error)):  # and the writer is kept
            leave()
    write(folder, resume=True)
    with pytest.raises(ValueError, match="closed or has failed"):
        writer.append(numbered(15, 16))
    writer.close()
    assert torch.equal(contents(folder), torch.cat([numbered(0, 10), numbered(0, 25)]))
