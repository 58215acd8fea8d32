"""Files made to harm: each is refused with an error that names it, quickly and without harm."""

import json
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.hostile_files import _cached
from helpers.sae_files import some_sae

import saefast
from saefast.activations import StoreWriter, open_activations
from saefast.damage import verify
from saefast.disk.atomic import write_tensors, write_whole
from saefast.disk.tables import read_table
from saefast.pipeline.settings_file import read_settings
from saefast.sweep.definition import read_sweep

MEMORY = 64 << 20
"""Bytes that Python may allocate for any of these files"""


def refused(path: Path, read: Callable[[Path], object], message: str = ".") -> None:
    """Assert an error in one line that names the file, with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError, OSError), match=message) as raised:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 2000


def tensors_file(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[Any, bytes]] = {
    "terabytes": ({"W_enc": entry([2**20, 2**20], 0, 2**42)}, b"\0" * 64),
    "terabytes in 64 bytes": ({"W_enc": entry([2**20, 2**20], 0, 64)}, b"\0" * 64),
    "overflowing": ({"W_enc": entry([2**62, 4], 0, 64)}, b"\0" * 64),
    "overlapping": ({"a": entry([4, 4], 0, 64), "b": entry([4, 4], 32, 96)}, b"\0" * 96),
    "negative": ({"W_enc": entry([-4, -4], 0, 64)}, b"\0" * 64),
    "backwards": ({"W_enc": entry([4, 4], 64, 0)}, b"\0" * 64),
    "before the data": ({"W_enc": entry([4, 4], -64, 0)}, b"\0" * 64),
    "fractional": ({"W_enc": entry([4.0, 4], 0, 64)}, b"\0" * 64),
    "deep": (b'{"a":' * 200_000, b""),
    "a list": (b"[1]", b""),
    "digits": (b'{"W": {"dtype": "F32", "shape": [' + b"9" * 9000 + b"]}}", b""),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("read", [saefast.load_sae, open_activations])
def test_headers_of_safetensors(case: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tensors_file(tmp_path / "a.safetensors", *HEADERS[case])
    if case == "overlapping" and read is open_activations:
        pytest.skip("reads a tensor by its own place, regardless of the others")
    refused(path, read)


@pytest.mark.parametrize("read", [saefast.load_sae, open_activations, verify])
def test_a_header_of_terabytes_in_a_sparse_file(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40) + b'{"W_enc":')
        file.truncate(2**40 + 100)
    if read is verify:
        assert len(verify(path)) == 1
    else:
        refused(path, read, "truncated or not a safetensors file")


class Grenade:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


class Swollen:
    """An object whose unpickling allocates a gigabyte, which torch permits."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**30,)


@pytest.mark.parametrize("read", [saefast.load_sae, open_activations, verify])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("content", [Grenade, Swollen])
def test_pickles(
    read: Callable[[Path], object], zipped: bool, content: Any, tmp_path: Path
) -> None:
    proof, path = tmp_path / "proof", tmp_path / "a.pt"
    made = Grenade(proof) if content is Grenade else Swollen()
    torch.save({"x": torch.ones(3, 2), "y": made}, path, _use_new_zipfile_serialization=zipped)
    if read is verify:
        verify(path)
    else:
        refused(path, read, "code")
    assert not proof.exists()
    pickle.loads(pickle.dumps(Grenade(proof)))
    assert proof.exists(), "the grenade does not work"


@pytest.mark.parametrize("read", [saefast.load_sae, open_activations])
def test_zip_bombs_in_files_of_torch(read: Callable[[Path], object], tmp_path: Path) -> None:
    torch.save(torch.zeros(50_000, 100), tmp_path / "whole.pt")
    path = tmp_path / "a.pt"
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert path.stat().st_size < 50_000
    refused(path, read, "would grow from")


def test_columns_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    zeros = pa.table({"a": pa.array(np.zeros(4_000_000, np.int8))})
    with pq.ParquetWriter(path, zeros.schema) as writer:
        for _ in range(40):
            writer.write_table(zeros)
    assert path.stat().st_size < 1_000_000
    refused(path, read_table, "would grow from")


LAUGHS = "\n".join(
    [
        "a0: &a0 [lol, lol]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
    ]
)
SETTINGS: dict[str, tuple[str, str]] = {
    "anchors": ("a.yaml", LAUGHS),
    "an anchor in itself": ("a.yaml", "train: &a {latents: *a}\nplanted: {}"),
    "a list in itself": ("a.yaml", "train: &a [*a]\nplanted: {}"),
    "objects": ("a.yaml", "train: !!python/object/apply:os.mkdir [proof]"),
    "deep YAML": ("a.yaml", "[" * 100_000),
    "deep YAML by lines": ("a.yaml", "- " * 100_000),
    "deep JSON": ("a.json", '{"a":' * 200_000),
    "deep TOML": ("a.toml", "a = " + "[" * 50_000),
    "long number": ("a.json", '{"train": {"latents": ' + "9" * 9000 + "}}"),
    "long text": ("a.json", json.dumps({"train": {"objective": "x" * 10_000_000}})),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, content = SETTINGS[case]
    (tmp_path / name).write_text(content)
    if case != "long text":
        refused(tmp_path / name, read_settings)
    else:
        with pytest.raises((ValueError, TypeError)):
            read_settings(tmp_path / name)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("base", ["../../etc/passwd", "/etc/passwd", "\0", "x" * 5000])
def test_sweeps_read_no_file_that_is_no_settings(base: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"base = {json.dumps(base)}\n[grid]\n'train.k' = [1]\n")
    with pytest.raises((ValueError, OSError)) as raised:
        read_sweep(path)
    assert "root:" not in str(raised.value)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", "a/b", "\0"])
def test_a_store_reads_no_other_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with StoreWriter(folder, 4, dtype=torch.float32) as writer:
        writer.append(torch.randn(9, 4))
    (shard,) = folder.glob("*.safetensors")
    shard.rename(tmp_path / "secret.safetensors")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["name"] = name
    (folder / "index.json").write_text(json.dumps(index))
    refused(folder, open_activations)
    assert verify(folder)


@pytest.mark.parametrize("name", ["../data.arrow", "/etc/passwd", ".."])
def test_a_cache_of_sae_lens_reads_no_other_folder(name: str, tmp_path: Path) -> None:
    _cached(tmp_path / "cache")
    (tmp_path / "cache" / "data.arrow").rename(tmp_path / "data.arrow")
    (tmp_path / "cache" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name}]})
    )
    refused(tmp_path / "cache", open_activations)


def test_a_cache_whose_arrays_end_beyond_their_values(tmp_path: Path) -> None:
    """Arrow checks offsets only if asked, and otherwise ends the process."""
    _cached(tmp_path / "cache")
    path = tmp_path / "cache" / "data.arrow"
    content, ends = path.read_bytes(), struct.pack("<2i", 35, 40)
    assert content.count(ends) == 1
    path.write_bytes(content.replace(ends, struct.pack("<2i", 35, 2**30)))
    refused(path.parent, open_activations, "truncated or not a file cached by SAELens")


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_writing_never_follows_links(tmp_path: Path) -> None:
    """A folder of others may hold links in place of the files, or of those being written."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("untouched")
    sae = saefast.save_sae(some_sae("topk"), tmp_path / "sae")
    for name in ("cfg.json", "sae_weights.safetensors"):
        (sae / name).unlink()
        (sae / name).symlink_to(victim)
    saefast.save_sae(some_sae("topk"), sae)
    saefast.load_sae(sae)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("a", "a.part", "b"):
        (run / name).symlink_to(victim)
    (run / "b.part").symlink_to(outside)
    write_whole(run / "a", b"content")
    write_tensors(run / "b", {"x": torch.ones(1)})
    assert victim.read_text() == "untouched"
    assert list(outside.iterdir()) == [victim]
    assert not any(path.is_symlink() for path in (*run.iterdir(), *sae.iterdir()))


def test_messages_hold_no_control_characters(tmp_path: Path) -> None:
    """Names in a file could otherwise clear the terminal or write a title."""
    name = "\x1b]0;title\x07\x1b[2Jx"
    path = tensors_file(
        tmp_path / "a.safetensors",
        {name: entry([2, 2], 0, 16), "b": entry([1], 16, 20)},
        b"\0" * 20,
    )
    with pytest.raises((ValueError, OSError)) as raised:
        saefast.load_sae(path)
    assert re.search(r"[\x00-\x08\x0b-\x1f]", str(raised.value)) is None
