"""Every source of activations gives the same promises: every row once per epoch, the same bits."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from torch import Tensor

from saefast.activations import (
    Activations,
    Batch,
    IteratorActivations,
    StoreActivations,
    StoreWriter,
    TensorActivations,
    open_activations,
    open_npy,
    open_pt,
    open_sae_lens,
    open_safetensors,
)
from saefast.activations.order import Order, permutation

D = 6
ROWS = 103
CONTEXT = 8


def numbered(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Tensor:
    """Row i holds multiples of i, exact in every dtype of so few rows."""
    return (torch.arange(rows)[:, None] * torch.tensor([1, -1, 0.5, 2, 0, 1])).to(dtype)


def write_arrow(
    folder: Path, shards: list[np.ndarray], name: str = "blocks.0.hook_resid_post"
) -> None:
    """A folder as `datasets.Dataset.save_to_disk` lays it out, arrays [n, context, d] by shard.

    Compared by hand with what datasets 5.2 writes and SAELens 6 asks of it.
    """
    import pyarrow as pa

    folder.mkdir()
    context, d = shards[0].shape[1:]
    kind = str(shards[0].dtype)
    features = {
        name: {"shape": [context, d], "dtype": kind, "_type": "Array2D"},
        "token_ids": {
            "feature": {"dtype": "int32", "_type": "Value"},
            "length": context,
            "_type": "List",
        },
    }
    inner = pa.list_(pa.list_(pa.from_numpy_dtype(shards[0].dtype)))
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[context, d], kind]),
    }
    schema = pa.schema(
        [
            pa.field(name, inner, metadata=extension),
            pa.field("token_ids", pa.list_(pa.int32(), context)),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    files = []
    for number, shard in enumerate(shards):
        files.append({"filename": f"data-{number:05d}-of-{len(shards):05d}.arrow"})
        with pa.ipc.new_stream(str(folder / files[-1]["filename"]), schema) as stream:
            for part in np.array_split(shard, 2):
                tokens = pa.array([[0] * context] * len(part), pa.list_(pa.int32(), context))
                stream.write(pa.record_batch([pa.array(part.tolist(), inner), tokens], schema))
    state = {"_data_files": files, "_fingerprint": "77427b6aa19fa0c4", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def write_store(folder: Path, x: Tensor, rows_per_shard: int = 40, **extras: Tensor) -> Path:
    with StoreWriter(folder, x.shape[1], dtype=x.dtype, rows_per_shard=rows_per_shard) as writer:
        writer.append(x, **extras)
    return folder


def make(kind: str, folder: Path, x: Tensor | None = None) -> Activations:
    """The same rows from the source named `kind`."""
    x = numbered() if x is None else x
    if kind == "tensor":
        return TensorActivations(x)
    if kind == "array":
        return TensorActivations(x.numpy())
    if kind == "store":
        return StoreActivations(write_store(folder / "store", x), block_rows=5, window_rows=20)
    if kind == "npy":
        np.save(folder / "x.npy", x.numpy())
        return open_npy(folder / "x.npy")
    if kind == "pt":
        torch.save(x, folder / "x.pt")
        return open_pt(folder / "x.pt")
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"x": x, "tokens": torch.arange(len(x))}, folder / "x.safetensors")
        return open_safetensors(folder / "x.safetensors")
    if kind == "list":
        return IteratorActivations(list(x.split(17)))
    assert kind == "iterator"
    return IteratorActivations(part for _ in range(50) for part in x.split(17))


SOURCES = ["tensor", "array", "store", "npy", "pt", "safetensors", "list", "iterator"]
SHUFFLED = SOURCES[:-2]


def take(batches: Iterator[Batch], n: int) -> list[Batch]:
    return list(islice(batches, n))


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(p.x, q.x) and np.array_equal(p.rows, q.rows) for p, q in pairs)


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
def test_rows_and_places_are_those_of_the_source(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    assert (source.rows, source.d, source.dtype) == (ROWS, D, torch.float32)
    batch = next(source.batches(50, seed=0))
    assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)])
    assert source.locate(int(batch.rows.min())) in batch.where
    assert source.locate(int(batch.rows.max())) in batch.where


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("start", [0, 1, 2, 5, 9, 23])
def test_start_skips_as_reading_would(kind: str, start: int, tmp_path: Path) -> None:
    whole = take(make(kind, tmp_path).batches(16, seed=11), start + 8)
    (tmp_path / "again").mkdir()
    resumed = take(make(kind, tmp_path / "again").batches(16, seed=11, start=start), 8)
    assert same(whole[start:], resumed)


@pytest.mark.parametrize("kind", SHUFFLED)
def test_order_depends_on_seed_and_epoch_alone(kind: str, tmp_path: Path) -> None:
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


@given(
    rows=st.integers(1, 200),
    block=st.integers(1, 60),
    window=st.integers(1, 120),
    seed=seeds,
    position=st.integers(0, 700),
)
def test_windows_hold_every_row_once_and_skip_exactly(
    rows: int, block: int, window: int, seed: int, position: int
) -> None:
    def drawn(start: int, n: int) -> np.ndarray:
        found: list[np.ndarray] = []
        for part in order.windows(start):
            read = np.concatenate([np.arange(*span) for span in part.spans])
            assert np.array_equal(read[part.places], part.rows)
            assert len(read) <= max(window, block)
            assert all(a[1] < b[0] for a, b in zip(part.spans, part.spans[1:], strict=False))
            found.append(part.rows)
            if sum(map(len, found)) >= n:
                break
        return np.concatenate(found)[:n]

    order = Order(rows, seed, block, window)
    everything = drawn(0, position + 3 * rows)
    for epoch in range(3):
        part = everything[epoch * rows : (epoch + 1) * rows]
        assert np.array_equal(np.sort(part), np.arange(rows))
    assert np.array_equal(everything[position:], drawn(position, 3 * rows))


def test_a_shuffle_moves_rows_far() -> None:
    """Neighbours in the data are not neighbours in the order, and every place is as likely."""
    order = Order(10_000, 0, 50, 2000)
    drawn = np.concatenate([part.rows for part in islice(order.windows(0), 5)])
    assert len(drawn) == 10_000
    assert abs(np.corrcoef(np.arange(10_000), drawn)[0, 1]) < 0.3
    assert (np.abs(np.diff(drawn)) < 5).mean() < 0.02


def test_the_order_is_pinned() -> None:
    """A training resumed with a later saefast or NumPy must find its place: these never change."""
    assert permutation(10, 7, 1, 2).tolist() == [1, 3, 8, 5, 4, 7, 0, 9, 2, 6]
    window = next(Order(1000, 5, 10, 100).windows(1234))
    assert window.rows[:5].tolist() == [630, 321, 698, 834, 671]
    source = TensorActivations(numbered())
    assert next(source.batches(8, seed=5, start=40)).rows.tolist() == [
        *(101, 36, 61, 48, 2, 24, 99, 73)
    ]


@pytest.mark.parametrize("kind", ["tensor", "store", "npy"])
def test_no_batch_shares_memory_with_the_next(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    kept = take(source.batches(30, seed=0), 12)
    copies = [batch.x.clone() for batch in kept]
    for batch in kept:
        assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)])
    kept[0].x.zero_()
    assert all(torch.equal(a.x, b) for a, b in zip(kept[1:], copies[1:], strict=True))
    assert torch.equal(take(source.batches(30, seed=0), 1)[0].x, copies[0])


def test_two_streams_of_one_source_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = make("store", tmp_path)
    alone = take(source.batches(9, seed=1), 30)
    one, other = source.batches(9, seed=1), source.batches(9, seed=2)
    together = [(next(one), next(other))[0] for _ in range(30)]
    assert same(alone, together)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_batches_come_in_the_dtype_asked_for(
    stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    x = normal((ROWS, D), 0, stored)
    store = write_store(tmp_path / "store", x)
    for source in (StoreActivations(store, dtype=asked), TensorActivations(x, dtype=asked)):
        batch = next(source.batches(ROWS, seed=0))
        assert batch.x.dtype == source.dtype == asked
        assert torch.equal(batch.x, x[torch.from_numpy(batch.rows)].to(asked))


def test_targets_stay_with_their_rows() -> None:
    x, target = numbered(), numbered()[:, :3] * 5
    for source in (
        TensorActivations(x, target),
        IteratorActivations(list(zip(x.split(17), target.split(17), strict=True))),
    ):
        for batch in take(source.batches(20, seed=0), 12):
            assert batch.target is not None
            assert torch.equal(batch.target, batch.x[:, :3] * 5)


def test_layout_of_memory_changes_nothing() -> None:
    x = numbered()
    wide = torch.zeros(ROWS, 2 * D)
    wide[:, ::2] = x
    plain = take(TensorActivations(x).batches(10, seed=0), 5)
    assert same(plain, take(TensorActivations(wide[:, ::2]).batches(10, seed=0), 5))
    assert same(plain, take(TensorActivations(x.T.contiguous().T).batches(10, seed=0), 5))
    backwards = np.ascontiguousarray(x.numpy()[::-1])[::-1]
    assert same(plain, take(TensorActivations(backwards).batches(10, seed=0), 5))


def test_a_read_only_array_is_taken_without_a_warning() -> None:
    array = numbered().numpy().copy()
    array.flags.writeable = False
    assert next(TensorActivations(array).batches(4, seed=0)).x.shape == (4, D)


@pytest.mark.parametrize("kind", SHUFFLED)
def test_fingerprint_follows_the_data(kind: str, tmp_path: Path) -> None:
    prints = []
    for number, value in enumerate([0.0, 0.0, 1.0]):
        (tmp_path / str(number)).mkdir()
        x = numbered()
        x[57, 3] += value
        prints.append(make(kind, tmp_path / str(number), x).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_fingerprint_of_much_data_is_sampled() -> None:
    x = torch.zeros(9 << 20, 2)
    source = TensorActivations(x)
    assert source.fingerprint.startswith("sampled-sha256:")
    for row in (0, len(x) - 1):
        changed = x.clone()
        changed[row] = 1
        assert TensorActivations(changed).fingerprint != source.fingerprint
    assert TensorActivations(x[:-1]).fingerprint != source.fingerprint
    assert TensorActivations(numbered()).fingerprint.startswith("sha256:")


def test_fingerprint_is_that_of_the_content() -> None:
    x = numbered()
    assert TensorActivations(x).fingerprint == TensorActivations(x.T.contiguous().T).fingerprint
    assert TensorActivations(x).fingerprint != TensorActivations(x, x).fingerprint
    assert TensorActivations(x).fingerprint != TensorActivations(x.reshape(-1, 2)).fingerprint
    assert IteratorActivations([x]).fingerprint == "unknown"


# Iterators


def test_an_iterator_that_ends_says_how_many_rows_there_were() -> None:
    batches = IteratorActivations(iter(numbered().split(17))).batches(50, seed=0)
    assert len(take(batches, 2)) == 2
    with pytest.raises(ValueError, match=r"ended after 103 rows .* train on at most 103 tokens"):
        next(batches)


def test_an_iterator_is_read_once() -> None:
    source = IteratorActivations(iter(numbered().split(17)))
    next(source.batches(5, seed=0))
    with pytest.raises(ValueError, match="has been read"):
        source.batches(5, seed=0)


def test_an_iterator_may_use_its_memory_again() -> None:
    def parts() -> Iterator[Tensor]:
        room = torch.empty(10, D)
        for part in numbered(100).split(10):
            yield room.copy_(part)

    for batch_size in (5, 10, 25):
        batches = take(IteratorActivations(parts()).batches(batch_size, seed=0), 100 // batch_size)
        assert torch.equal(torch.cat([batch.x for batch in batches]), numbered(100))


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ValueError, "empty"),
        ([torch.zeros(3)], ValueError, r"item 0 of source must have shape \[n, d\]"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], ValueError, "item 1 of source must be of width 4"),
        ([torch.zeros(3, 4), "rows"], TypeError, "item 1 of source must be a torch.Tensor"),
        ([torch.zeros(3, 4).int()], TypeError, "got int32"),
        ([(torch.zeros(3, 4), torch.zeros(2, 4))], ValueError, "as many targets as rows, 3, got 2"),
        ([(torch.zeros(3, 4),) * 3], ValueError, "got 3 values"),
        ([torch.zeros(0, 4)], ValueError, "yielded none"),
    ],
)
def test_bad_items_are_named(items: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        take(IteratorActivations(items).batches(8, seed=0), 3)


# Bad input


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
def test_bad_arguments_are_named_before_anything_is_read(
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
def test_bad_sources_are_named(
    build: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


# Files


@pytest.mark.parametrize("kind", ["store", "npy", "pt", "safetensors"])
def test_open_activations_goes_by_content(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    (path,) = tmp_path.iterdir()
    unnamed = path.rename(tmp_path / "without-a-name")
    for given_path in (unnamed, str(unnamed)):
        source = open_activations(given_path, dtype=torch.float64)
        batch = next(source.batches(20, seed=0))
        assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)].double())


def test_open_activations_takes_what_is_in_memory() -> None:
    x = numbered()
    for source in (x, x.numpy(), list(x.split(17)), iter(x.split(17))):
        assert open_activations(source).d == D
    ready = TensorActivations(x)
    assert open_activations(ready) is ready


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shards", [1, 3])
def test_sae_lens_folder(kind: str, shards: int, tmp_path: Path) -> None:
    arrays = normal((20, CONTEXT, D), 0, torch.float64).numpy().astype(kind)
    write_arrow(tmp_path / "cached", np.array_split(arrays, shards))
    source = open_activations(tmp_path / "cached")
    assert (source.rows, source.d) == (20 * CONTEXT, D)
    rows = torch.from_numpy(arrays.reshape(-1, D)).float()
    for batch in take(source.batches(48, seed=0), 7):
        assert torch.equal(batch.x, rows[torch.from_numpy(batch.rows)])
    row = CONTEXT * len(np.array_split(arrays, shards)[-1]) - 1
    last = f"data-{shards - 1:05d}-of-{shards:05d}.arrow, row {row}"
    assert source.locate(20 * CONTEXT - 1).endswith(last)


def test_sae_lens_folder_where_datasets_was_imported(tmp_path: Path) -> None:
    """The `datasets` library tells pyarrow of its type, and columns then come wrapped in it."""
    import pyarrow as pa

    class Array2D(pa.ExtensionType):
        def __init__(self) -> None:
            inner = pa.list_(pa.list_(pa.float32()))
            super().__init__(inner, "datasets.features.features.Array2DExtensionType")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: object, serialized: bytes) -> "Array2D":
            return cls()

    arrays = normal((5, CONTEXT, D), 0, torch.float32).numpy()
    write_arrow(tmp_path / "cached", [arrays])
    before = open_sae_lens(tmp_path / "cached").fingerprint
    pa.register_extension_type(Array2D())
    try:
        assert open_sae_lens(tmp_path / "cached").fingerprint == before
    finally:
        pa.unregister_extension_type("datasets.features.features.Array2DExtensionType")


def test_bad_sae_lens_folders_are_named(tmp_path: Path) -> None:
    arrays = normal((20, CONTEXT, D), 0, torch.float32).numpy()
    folder = tmp_path / "cached"
    write_arrow(folder, [arrays])
    with pytest.raises(ValueError, match=r"column 'blocks\.1'.*got blocks\.0\.hook"):
        open_sae_lens(folder, hook_name="blocks.1")
    data = folder / "data-00000-of-00001.arrow"
    whole = data.read_bytes()
    for keep in (10, len(whole) // 2, len(whole) - 200, len(whole) - 8):
        data.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"data-00000-of-00001\.arrow"):
            open_sae_lens(folder)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00000-of-00001\.arrow"):
        open_sae_lens(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(ValueError, match="another folder"):
        open_sae_lens(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is not JSON"):
        open_sae_lens(folder)


class Runs:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple:
        return (print, ("this must not be printed",))


def test_code_in_a_pt_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Runs(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt must hold one tensor, .*refused"):
        open_activations(tmp_path / "x.pt")
    assert "printed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.zeros(2, 2)}, "got dict"),
        (torch.zeros(3), r"shape \[n, d\]"),
        (torch.zeros(3, 2).int(), "got int32"),
    ],
)
def test_a_pt_file_holds_one_tensor(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt.*{message}"):
        open_pt(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), "i4"), "got <i4"),
        (np.zeros((3, 2), ">f4"), "got >f4"),
        (np.array([[None]]), r"got \|O"),
        (np.zeros(3, "f4"), r"got shape \(3,\)"),
        (np.zeros((0, 3), "f4"), "not empty"),
        (np.asfortranarray(np.zeros((3, 2), "f4")), "column by column"),
    ],
)
def test_bad_npy_files_are_named(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"x\.npy .*{message}"):
        open_npy(tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.02])
def test_truncated_files_are_named(kind: str, keep: float, tmp_path: Path) -> None:
    make(kind, tmp_path)
    path = tmp_path / f"x.{kind}"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"x\.{kind} "):
        open_activations(path)


def test_a_safetensors_file_with_a_choice_asks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": numbered(), "b": numbered() + 1, "c": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"a \[103, 6\], b \[103, 6\], c \[3\]; name one"):
        open_activations(path)
    with pytest.raises(ValueError, match="a tensor 'c'"):
        open_safetensors(path, tensor="c")
    batch = next(open_safetensors(path, tensor="b").batches(5, seed=0))
    assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)] + 1)


def test_what_is_heavy_is_imported_where_it_is_used() -> None:
    script = "import sys, saefast.activations; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", script]
    asked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "safetensors", "datasets"} & set(asked)  # torch asks for tqdm


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=numbered().numpy())
    (tmp_path / "x.txt").write_text("1 2 3")
    for name in ("x.npz", "x.txt", "."):
        with pytest.raises(ValueError, match="must be"):
            open_activations(tmp_path / name)


def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    source = make("npy", tmp_path)
    path = tmp_path / "x.npy"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"x\.npy ended \d+ bytes early"):
        next(source.batches(5, seed=0))
