"""Every source of activations yields each row once per epoch, with the same bits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sources import ROWS, SHUFFLED, SOURCES, D, make, numbered, same, take, write_store
from helpers.strategies import normal

from saefast.activations import (
    IteratorActivations,
    StoreActivations,
    TensorActivations,
    open_activations,
)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("batch_size", [1, 7, 103, 250])
def test_every_row_comes_once_per_epoch(kind: str, batch_size: int, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    batches = take(source.batches(batch_size, seed=3), -(-3 * ROWS // batch_size))
    assert all(batch.x.shape == (batch_size, D) for batch in batches)
    values = torch.cat([batch.x for batch in batches])
    for epoch in values[: 3 * ROWS].split(ROWS):
        assert torch.equal(epoch[epoch[:, 0].argsort()], numbered())


@pytest.mark.parametrize("kind", SHUFFLED)
def test_batches_state_the_numbers_of_their_rows(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    assert (source.rows, source.d, source.dtype) == (ROWS, D, torch.float32)
    batch = next(source.batches(50, seed=0))
    assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)])
    assert source.locate(int(batch.rows.min())) in batch.where
    assert source.locate(int(batch.rows.max())) in batch.where


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("start", [0, 1, 2, 5, 9, 23])
def test_start_skips_the_same_batches_as_reading(kind: str, start: int, tmp_path: Path) -> None:
    whole = take(make(kind, tmp_path).batches(16, seed=11), start + 8)
    (tmp_path / "again").mkdir()
    resumed = take(make(kind, tmp_path / "again").batches(16, seed=11, start=start), 8)
    assert same(whole[start:], resumed)


@pytest.mark.parametrize("kind", SHUFFLED)
def test_order_depends_on_seed_and_epoch_only(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    torch.manual_seed(0)
    untouched = np.random.get_state()[1:3]  # noqa: NPY002 - that it is not asked is the test
    first = take(source.batches(ROWS, seed=1), 2)
    assert torch.get_rng_state().equal(torch.manual_seed(0).get_state())
    assert repr(np.random.get_state()[1:3]) == repr(untouched)  # noqa: NPY002
    assert same(first, take(source.batches(ROWS, seed=1), 2))
    assert not np.array_equal(first[0].rows, first[1].rows)
    assert not np.array_equal(first[0].rows, next(source.batches(ROWS, seed=2)).rows)
    assert not np.array_equal(first[0].rows, np.arange(ROWS))


@pytest.mark.parametrize("kind", ["tensor", "store", "npy"])
def test_batches_do_not_share_memory(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    kept = take(source.batches(30, seed=0), 12)
    copies = [batch.x.clone() for batch in kept]
    for batch in kept:
        assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)])
    kept[0].x.zero_()
    assert all(torch.equal(a.x, b) for a, b in zip(kept[1:], copies[1:], strict=True))
    assert torch.equal(take(source.batches(30, seed=0), 1)[0].x, copies[0])


def test_two_streams_of_one_source_are_independent(tmp_path: Path) -> None:
    source = make("store", tmp_path)
    alone = take(source.batches(9, seed=1), 30)
    one, other = source.batches(9, seed=1), source.batches(9, seed=2)
    together = [(next(one), next(other))[0] for _ in range(30)]
    assert same(alone, together)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_batches_have_the_requested_dtype(
    stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    x = normal((ROWS, D), 0, stored)
    store = write_store(tmp_path / "store", x)
    for source in (StoreActivations(store, dtype=asked), TensorActivations(x, dtype=asked)):
        batch = next(source.batches(ROWS, seed=0))
        assert batch.x.dtype == source.dtype == asked
        assert torch.equal(batch.x, x[torch.from_numpy(batch.rows)].to(asked))


def test_targets_belong_to_their_rows() -> None:
    x, target = numbered(), numbered()[:, :3] * 5
    for source in (
        TensorActivations(x, target),
        IteratorActivations(list(zip(x.split(17), target.split(17), strict=True))),
    ):
        for batch in take(source.batches(20, seed=0), 12):
            assert batch.target is not None
            assert torch.equal(batch.target, batch.x[:, :3] * 5)


def test_memory_layout_does_not_change_batches() -> None:
    x = numbered()
    wide = torch.zeros(ROWS, 2 * D)
    wide[:, ::2] = x
    plain = take(TensorActivations(x).batches(10, seed=0), 5)
    assert same(plain, take(TensorActivations(wide[:, ::2]).batches(10, seed=0), 5))
    assert same(plain, take(TensorActivations(x.T.contiguous().T).batches(10, seed=0), 5))
    backwards = np.ascontiguousarray(x.numpy()[::-1])[::-1]
    assert same(plain, take(TensorActivations(backwards).batches(10, seed=0), 5))


def test_a_read_only_array_causes_no_warning() -> None:
    array = numbered().numpy().copy()
    array.flags.writeable = False
    assert next(TensorActivations(array).batches(4, seed=0)).x.shape == (4, D)


@pytest.mark.parametrize("kind", SHUFFLED)
def test_fingerprint_depends_on_the_data(kind: str, tmp_path: Path) -> None:
    prints = []
    for number, value in enumerate([0.0, 0.0, 1.0]):
        (tmp_path / str(number)).mkdir()
        x = numbered()
        x[57, 3] += value
        prints.append(make(kind, tmp_path / str(number), x).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_fingerprint_of_large_data_is_sampled() -> None:
    x = torch.zeros(9 << 20, 2)
    source = TensorActivations(x)
    assert source.fingerprint.startswith("sampled-sha256:")
    for row in (0, len(x) - 1):
        changed = x.clone()
        changed[row] = 1
        assert TensorActivations(changed).fingerprint != source.fingerprint
    assert TensorActivations(x[:-1]).fingerprint != source.fingerprint
    assert TensorActivations(numbered()).fingerprint.startswith("sha256:")


def test_fingerprint_is_equal_for_equal_content() -> None:
    x = numbered()
    assert TensorActivations(x).fingerprint == TensorActivations(x.T.contiguous().T).fingerprint
    assert TensorActivations(x).fingerprint != TensorActivations(x, x).fingerprint
    assert TensorActivations(x).fingerprint != TensorActivations(x.reshape(-1, 2)).fingerprint
    assert IteratorActivations([x]).fingerprint == "unknown"


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": None}, TypeError, "seed must be an int"),
        ({"start": -1}, ValueError, "start must be at least 0"),
    ],
)
def test_bad_arguments_raise_before_anything_is_read(
    kind: str, arguments: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        make(kind, tmp_path).batches(**{"batch_size": 4, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: TensorActivations([[1.0]]), TypeError, "got list"),
        (lambda: TensorActivations(torch.zeros(3, 2).int()), TypeError, "got int32"),
        (lambda: TensorActivations(torch.zeros(3)), ValueError, r"shape \[n, d\], got \(3,\)"),
        (lambda: TensorActivations(torch.zeros(0, 3)), ValueError, "at least one row"),
        (lambda: TensorActivations(np.zeros((2, 2), ">f4")), TypeError, "byte order, got >f4"),
        (
            lambda: TensorActivations(torch.zeros(3, 2), torch.zeros(2, 2)),
            ValueError,
            "target must have as many rows as x, 3, got 2",
        ),
        (lambda: TensorActivations(torch.zeros(3, 2), dtype="float32"), TypeError, "torch.dtype"),
        (lambda: TensorActivations(torch.zeros(3, 2), dtype=torch.int8), ValueError, "got int8"),
        (lambda: IteratorActivations(3), TypeError, "source must be iterable"),
        (lambda: open_activations(3), TypeError, "got int"),
        (lambda: open_activations("no/such"), FileNotFoundError, "no/such does not exist"),
    ],
)
def test_errors_name_bad_sources(
    build: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


def test_heavy_packages_are_imported_on_first_use() -> None:
    script = "import sys, saefast.activations; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", script]
    asked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "safetensors", "datasets"} & set(asked)  # torch asks for tqdm
