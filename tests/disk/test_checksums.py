"""Checksums are those that the documentation defines, so that other programs can compute them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.xxh64 import xxh64
from safetensors.torch import load_file, safe_open, save_file

from saefast.disk.atomic import write_tensors
from saefast.disk.checksums import checksum, numbers
from saefast.disk.sealed_tables import open_table, sealed_table
from saefast.disk.tables import read_table, table_of, write_table

TENSORS = {"W": torch.arange(15.0).view(3, 5), "b": torch.zeros(0), "n": torch.tensor(7)}


def some_bytes(length: int) -> bytes:
    return hashlib.shake_128(str(length).encode()).digest(length)


def test_checksums_equal_published_values() -> None:
    assert checksum(b"") == "ef46db3751d8e999"
    assert checksum(b"a") == "d24ec4f1a98c6e5b"
    assert checksum(b"abc") == "44bc2cf5ad770999"
    assert checksum(b"Nobody inspects the spammish repetition") == "fbcea83c8a378bf1"


def test_checksums_of_any_length_follow_the_specification() -> None:
    for length in (*range(140), 1000, 65_537):
        assert int(checksum(some_bytes(length)), 16) == xxh64(some_bytes(length)), length


def test_checksums_do_not_depend_on_threads_or_alignment() -> None:
    pieces = [some_bytes(n) for n in (100_000, 0, 77, 3)]
    expected = [xxh64(piece) for piece in pieces]
    assert numbers(pieces, 1) == numbers(pieces, 3) == expected
    shifted = memoryview(b"x" + pieces[0])[1:]
    assert numbers([shifted]) == expected[:1]
    with pytest.raises(ValueError, match="contiguous bytes"):
        numbers([shifted[::2]])


def test_another_program_can_recompute_all_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"note": 'with "quotes" and é'})
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:size])
    metadata = entries.pop("__metadata__")
    assert list(metadata) == sorted(metadata)
    assert metadata.pop("note") == 'with "quotes" and é'
    header = metadata.pop("saefast.xxh64")
    assert xxh64(content[:size].replace(header.encode(), b"0" * 16)) == int(header, 16)
    assert metadata.keys() == {f"saefast.xxh64:{name}" for name in TENSORS}
    for name, entry in entries.items():
        begin, end = (size + offset for offset in entry["data_offsets"])
        assert xxh64(content[begin:end]) == int(metadata[f"saefast.xxh64:{name}"], 16)


def test_other_libraries_read_files_with_checksums(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"note": "kept"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], value) for name, value in TENSORS.items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["note"] == "kept"
    save_file(TENSORS, tmp_path / "plain.safetensors")
    own, plain = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("a", "plain"))
    data = 60 + 8  # bytes of W and n
    assert own[-data:] == plain[-data:]


def test_the_checksum_of_a_table_can_be_recomputed(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    write_table(path, {"seed": [1, 2], "name": ["a", "b"]}, {b"about": b"this"})
    metadata = pq.ParquetFile(path).metadata.metadata
    digits = metadata[b"saefast.xxh64"]
    assert metadata[b"saefast.xxh64.of"] == b"file"
    content = path.read_bytes()
    assert content.count(digits) == 1
    assert xxh64(content.replace(digits, b"0" * 16)) == int(digits, 16)
    assert read_table(path).schema.metadata == {b"about": b"this"}
    assert pq.read_table(path)["name"].to_pylist() == ["a", "b"]


def test_a_second_save_gives_the_same_bytes(tmp_path: Path) -> None:
    """Another process gives them too, although safetensors orders metadata differently there."""
    notes = {name: name for name in "abcdefgh"}
    program = (
        "import sys, torch, pathlib; from saefast.disk.atomic import write_tensors; "
        f"write_tensors(pathlib.Path(sys.argv[1]), {{'w': torch.ones(3)}}, {notes})"
    )
    for name in "xyz":
        file = str(tmp_path / name)
        subprocess.run([sys.executable, "-P", "-c", program, file], check=True)
    assert len({(tmp_path / name).read_bytes() for name in "xyz"}) == 1
    for name in "xy":
        write_table(tmp_path / name, {"seed": [1, 2]})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_tables_are_read_from_memory_of_arrow() -> None:
    """A thread of Arrow that released an object of Python while Python ends would abort."""
    content = sealed_table(table_of([{"a": 1, "b": 2.5}] * 100))
    before = sys.getrefcount(content)
    file = open_table(content)
    assert file.read().num_rows == 100
    assert sys.getrefcount(content) == before
