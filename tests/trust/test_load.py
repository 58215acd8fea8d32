"""Load: flat memory over many steps and tables, many threads, files larger than memory."""

import itertools
import json
import os
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.campaign import Campaign
from helpers.leaks import GROWTH, Left, growth, resident

import saefast
from saefast import SAE, FusedStep, TrainConfig, reference
from saefast.activations import StoreActivations, StoreWriter, open_activations
from saefast.damage import verify
from saefast.disk.tables import add_columns, read_table, write_table
from saefast.run_folder import FEATURES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def nothing_left(torch_threads: None) -> Iterator[None]:
    """Assert that no file stays open, and that no temporary file is left."""
    torch.set_num_threads(1)
    before = Left.now()
    yield
    assert Left.now().beyond(before) == []


@pytest.mark.campaign("load: steps of training", 600, 100_000)
def test_memory_stays_flat(campaign: Campaign) -> None:
    sae = SAE(16, 64, k=4, seed=0)
    step = FusedStep(sae, lr=1e-3)
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    seen = []
    for number in range(campaign.cases):
        step(rows)
        if number % max(1, campaign.cases // 20) == 0:
            seen.append(resident())
        campaign.count("step")
    print(f"{growth(seen) / (campaign.cases / 2):.2f} bytes per step")
    assert growth(seen) < GROWTH


@pytest.mark.campaign("load: tables of features", 40, 10_000)
def test_many_tables_of_features(tmp_path: Path, campaign: Campaign) -> None:
    """Tables of 1,000 features are written, verified, given a column and read."""
    rng = np.random.default_rng(0)
    columns = {"seed": np.zeros(1000, int), "feature": np.arange(1000), "score": rng.random(1000)}
    columns["group"] = ["stable", "unstable"] * 500
    seen = []
    for number in range(campaign.cases):
        path = tmp_path / str(number % 10) / FEATURES
        write_table(path, columns)
        assert verify(path) == []
        add_columns(path, {"firing_rate": columns["score"] + number})
        read = read_table(path)
        assert read.num_rows == 1000
        assert read["firing_rate"][999].as_py() == columns["score"][999] + number
        if number % max(1, campaign.cases // 20) == 0:
            seen.append(resident())
        campaign.count("read")
    assert growth(seen) < 4 * GROWTH
    assert sorted(path.name for path in tmp_path.rglob("*.p*")) == [FEATURES] * 10


@pytest.mark.campaign("load: SAEs on one stream", 6, 64)
def test_many_saes_on_one_stream(campaign: Campaign) -> None:
    """Each has the bits of the SAE that is trained alone."""
    rows = torch.randn(600, 12, generator=torch.Generator().manual_seed(0))
    asked = {"latents": 32, "k": 3, "tokens": 1200, "batch_size": 100}
    together = saefast.train_saes(
        rows, TrainConfig(seeds=tuple(range(campaign.cases)), **asked), progress=False
    )
    for seed, sae in enumerate(together):
        if seed % 5 == 0:
            (alone,) = saefast.train_saes(rows, TrainConfig(seeds=(seed,), **asked), progress=False)
            for name, value in alone.state_dict().items():
                assert torch.equal(value, sae.state_dict()[name]), (seed, name)
        campaign.count("trained")


@pytest.mark.campaign("load: calls from 16 threads", 400, 10_000)
def test_calls_from_many_threads(campaign: Campaign) -> None:
    generator = torch.Generator().manual_seed(0)
    problems = []
    for k in range(1, 9):
        x = torch.randint(-3, 4, (5, 12), generator=generator).float()
        weight = torch.randint(-3, 4, (40, 12), generator=generator).float()
        code = reference.topk_encode(x, weight, k=k)
        problems.append((x, weight, k, code, reference.sparse_decode(*code, weight)))

    def call(number: int) -> str:
        torch.set_num_threads(1)
        x, weight, k, code, decoded = problems[number % len(problems)]
        found = saefast.topk_encode(x, weight, k=k)
        same = torch.equal(found.values, code.values) and torch.equal(found.indices, code.indices)
        same &= torch.equal(saefast.sparse_decode(*found, weight), decoded)
        return "as the reference" if same else "different"

    with ThreadPoolExecutor(16) as pool:
        for outcome in pool.map(call, range(campaign.cases)):
            assert outcome == "as the reference"
            campaign.count(outcome)


def test_a_store_of_200_gigabytes(tmp_path: Path) -> None:
    """Sparse files, all zeros but the last row: opened, read at random places, and streamed."""
    d, shards = 1024, 4
    rows = 50 * GIGABYTE // (4 * d)
    with StoreWriter(tmp_path / "store", d, dtype=torch.float32) as writer:
        writer.append(torch.zeros(1, d))
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    (first,) = index["shards"]
    (tmp_path / "store" / first["name"]).unlink()
    entry = {"dtype": "F32", "shape": [rows, d], "data_offsets": [0, rows * d * 4]}
    header = json.dumps({"activations": entry}).encode()
    last = struct.pack(f"<{d}f", *range(d))
    index["shards"], index["rows"] = [], shards * rows
    for number in range(shards):
        name = f"activations-{number:05}.safetensors"
        with (tmp_path / "store" / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + rows * d * 4)
            file.seek(-len(last), os.SEEK_END)
            file.write(last)
            size = file.tell()
        index["shards"].append({**first, "name": name, "rows": rows, "bytes": size})
    (tmp_path / "store" / "index.json").write_text(json.dumps(index))
    before = resident()
    store = StoreActivations(tmp_path / "store", window_rows=8192)
    assert store.rows * d * 4 > 199 * GIGABYTE
    assert torch.equal(store.read("activations", rows - 1, rows)[0], torch.arange(float(d)))
    assert torch.equal(store.read("activations", 4 * rows - 1, 4 * rows)[0], torch.arange(float(d)))
    drawn = random.Random(0)
    for _ in range(50):
        place = drawn.randrange(store.rows - 1)
        assert store.read("activations", place, place + 1).shape == (1, d)
    for batch in itertools.islice(store.batches(512, seed=0), 4):
        del batch
    assert resident() - before < GIGABYTE // 2
    open_activations(tmp_path / "store")


class TestPlantedLeaks:
    """The detectors of the tests above report leaks."""

    def test_of_memory(self) -> None:
        kept, seen = [], []
        for _ in range(20):
            # Half a megabyte of its own; memory that was freed before would be used again.
            kept.append(mmap(-1, 1 << 19))
            kept[-1].write(bytes(1 << 19))
            seen.append(resident())
        assert growth(seen) >= GROWTH
        for block in kept:
            block.close()

    def test_of_a_descriptor(self) -> None:
        before = Left.now()
        descriptor = os.open(os.devnull, os.O_RDONLY)
        assert Left.now().beyond(before) == [f"{os.devnull} is open"]
        os.close(descriptor)
        assert Left.now().beyond(before) == []

    @pytest.mark.parametrize("name", ["saefast-x", "x.part"])
    def test_of_a_temporary_file(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tempfile.mkdtemp()
        monkeypatch.setattr(tempfile, "tempdir", folder)
        before = Left.now()
        path = Path(folder, name)
        path.touch()
        assert Left.now().beyond(before) == [f"{path} is left"]
        shutil.rmtree(folder)
        assert Left.now().beyond(before) == []
