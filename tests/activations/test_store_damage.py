"""Damage to a store is detected, and the error names the file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.small_store import shard, write

from saefast.activations import StoreActivations, verify_store


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
        (longer, ValueError, "longer than expected"),
        (missing, FileNotFoundError, "is missing; the index lists it with 10 rows"),
        (other_dtype, ValueError, r"must be torch.float32 \(10, 4\).* got torch.int32 \(10, 4\)"),
        (other_shape, ValueError, r"got torch.float32 \(4, 10\)"),
        (other_name, ValueError, "got nothing"),
    ],
)
def test_damage_is_detected_on_opening(
    damage: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "store")
    damage(folder)
    with pytest.raises(error, match=rf"activations-00001\.safetensors.*{message}"):
        StoreActivations(folder)


@pytest.mark.parametrize("place", [9, -1])
def test_verify_detects_a_flipped_bit(place: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    verify_store(folder)
    StoreActivations(folder, verify=True)
    content = bytearray(shard(folder, 1).read_bytes())
    content[place] ^= 1
    shard(folder, 1).write_bytes(content)
    shard(folder, 2).unlink()
    with pytest.raises(ValueError, match=r"2 of 3.*00001.* checksum .*00002.* is missing"):
        verify_store(folder)
    with pytest.raises(ValueError, match=r"damaged shards, .*\(2 of 3\)"):
        StoreActivations(folder, verify=True)


def test_verify_shows_progress_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saefast.progress.DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
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
def test_errors_name_a_bad_index(key: str, value: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "store") / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=rf"index\.json is not .*{message}"):
        StoreActivations(tmp_path / "store")


def test_errors_name_an_index_that_is_not_json(tmp_path: Path) -> None:
    path = write(tmp_path / "store") / "index.json"
    for text in ("", "[]", "{}", path.read_text()[:-40]):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json is not the index"):
            StoreActivations(tmp_path / "store")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json does not exist"):
        StoreActivations(tmp_path / "store")
