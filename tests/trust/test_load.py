"""Load: flat memory over many steps, calls from many threads, files larger than memory."""

import itertools
import json
import os
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.campaign import Campaign

import saefast
from saefast import SAE, FusedStep, TrainConfig, reference
from saefast.activations import StoreActivations, StoreWriter, open_activations

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GIGABYTE = 10**9


def resident() -> int:
    """Return the bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def nothing_left(torch_threads: None) -> Iterator[None]:
    """Assert that no file stays open, and that no temporary file is left."""
    torch.set_num_threads(1)
    before = len(os.listdir("/proc/self/fd")), sorted(os.listdir(tempfile.gettempdir()))
    yield
    left = set(os.listdir(tempfile.gettempdir())) - set(before[1])
    assert len(os.listdir("/proc/self/fd")) <= before[0]
    assert not [name for name in left if "saefast" in name or name.endswith(".part")]


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
    half = seen[len(seen) // 2 :]
    grown = (half[-1] - half[0]) / (campaign.cases / 2)
    print(f"{grown:.2f} bytes per step")
    assert half[-1] - half[0] < 2 << 20


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
