"""A flipped bit in any file that saefast writes is an error that names the file and the tensor."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.campaign import Campaign
from helpers.flipped_bits import bits_of_parts, flipped
from helpers.sae_files import HOLDS, some_sae

import saefast
from saefast.activations import Activations, StoreActivations, StoreWriter, open_activations
from saefast.activations.safetensors_file import places
from saefast.disk.sealed_tensors import PIECE
from saefast.disk.tables import read_table, write_table
from saefast.formats.tensor_files import read_tensors
from saefast.match.saved import Unfinished, read_pair
from saefast.train.ranks.files import read_state, write_state, written
from saefast.train.ranks.share import Share
from saefast.train.ranks.simulated import Simulated, SimulatedRank

HEADER = "the header"
ARCHIVES = ("dictionary_learning", "openai", "batch_topk", "gemma_scope", "qwen_scope")
ROWS, D = 900, 100
pytestmark = pytest.mark.campaign("flipped bits", 40, 2000)


def parts_of(path: Path) -> dict[str, bytes]:
    """Return the header, and the bytes of each tensor, of a safetensors file."""
    content = path.read_bytes()
    parts = {HEADER: content[: 8 + int.from_bytes(content[:8], "little")]}
    for name, place in places(path).items():
        assert place.dtype is not None
        size = place.dtype.itemsize * torch.Size(place.shape).numel()
        parts[name] = content[place.offset : place.offset + size]
    return parts


def assert_named(
    campaign: Campaign, path: Path, parts: Mapping[str, bytes], load: Callable[[], object]
) -> None:
    """Flip bits of each part, and compare the errors with the names of the parts."""
    load()
    for name, bit in bits_of_parts(path, parts, campaign.cases):
        with flipped(path, bit), pytest.raises(ValueError, match=r".") as raised:
            load()
        message = str(raised.value)
        assert message.startswith(str(path)), (bit, message)
        assert "\n" not in message
        if name != HEADER:  # which may no longer be valid JSON
            assert message.startswith(f"{path}: {name}"), (bit, message)
            assert "is damaged: it differs from the checksum that was saved with it" in message
        campaign.count("clear error")
    load()


class Saved(NamedTuple):
    """Folder of an SAE, and the file of its weights."""

    folder: Path
    file: Path


def save(folder: Path, format: str) -> Saved:
    saefast.save_sae(some_sae(HOLDS[format][-1]), folder, format=format)
    (file,) = (path for path in folder.iterdir() if path.suffix != ".json")
    return Saved(folder, file)


@pytest.mark.parametrize("format", [name for name in HOLDS if name not in ARCHIVES])
def test_weights_in_safetensors(format: str, tmp_path: Path, campaign: Campaign) -> None:
    saved = save(tmp_path / "sae", format)
    assert_named(campaign, saved.file, parts_of(saved.file), lambda: saefast.load_sae(saved.folder))


@pytest.mark.parametrize("format", ARCHIVES)
def test_weights_in_archives(format: str, tmp_path: Path, campaign: Campaign) -> None:
    saved = save(tmp_path / "sae", format)
    content, parts = saved.file.read_bytes(), {}
    for name, value in read_tensors(saved.file, False).tensors.items():
        raw = value.numpy().tobytes("A")
        if value.ndim and content.count(raw) == 1:  # zeros are found in other places, too
            parts[name] = raw
    assert len(parts) >= 2
    assert_named(campaign, saved.file, parts, lambda: saefast.load_sae(saved.folder))


@pytest.mark.parametrize("format", ARCHIVES)
def test_other_bytes_of_archives_change_no_weight_silently(
    format: str, tmp_path: Path, campaign: Campaign
) -> None:
    """Dates and padding have no checksum, and no effect."""
    saved = save(tmp_path / "sae", format)
    before = saefast.load_sae(saved.folder).state_dict()
    for _, bit in bits_of_parts(saved.file, {"": saved.file.read_bytes()}, campaign.cases):
        with flipped(saved.file, bit):
            try:
                after = saefast.load_sae(saved.folder).state_dict()
            except (ValueError, OSError) as error:
                assert str(saved.folder) in str(error)  # noqa: PT017
                campaign.count("clear error")
            else:
                assert all(torch.equal(after[name], value) for name, value in before.items())
                campaign.count("no effect")


def test_firing_rates_beside_the_weights(tmp_path: Path, campaign: Campaign) -> None:
    sae = some_sae("topk")
    sae.firing_rate = torch.rand(sae.m, generator=torch.Generator().manual_seed(0))
    folder = saefast.save_sae(sae, tmp_path / "sae")
    file = folder / "sparsity.safetensors"
    assert_named(campaign, file, parts_of(file), lambda: saefast.load_sae(folder))


def test_mapped_dictionaries(tmp_path: Path, campaign: Campaign) -> None:
    saved = save(tmp_path / "sae", "sae_lens")
    assert_named(
        campaign, saved.file, parts_of(saved.file), lambda: saefast.load_dictionaries(saved.folder)
    )


def test_comparisons_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("sae_lens", "dictionary_learning"):
        saved = save(tmp_path / format, format)
        content = saved.file.read_bytes()
        bias = saefast.load_sae(saved.folder).b_dec.detach().numpy().tobytes()
        with flipped(saved.file, 8 * content.index(bias)):
            with pytest.raises(ValueError, match=r"verify=False or SAEFAST_VERIFY=0$"):
                saefast.load_sae(saved.folder)
            changed = saefast.load_sae(saved.folder, verify=False)
            saefast.load_dictionaries(saved.folder, verify=False)
            with monkeypatch.context() as patch:
                patch.setenv("SAEFAST_VERIFY", "0")
                saefast.load_sae(saved.folder)
        assert not torch.equal(changed.b_dec, saefast.load_sae(saved.folder).b_dec)


def some_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (192, 8), "b_enc": (192,), "W_dec": (192, 8), "b_dec": (8,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_checkpoints(tmp_path: Path, campaign: Campaign) -> None:
    state = some_state()
    write_state(tmp_path, 5, state, None)
    (file,) = written(tmp_path, 5)
    assert_named(campaign, file, parts_of(file), lambda: read_state([file], state, None))


def test_checkpoints_of_ranks(tmp_path: Path, campaign: Campaign) -> None:
    state = some_state()
    for rank in range(2):
        share = Share(SimulatedRank(Simulated(2), rank), 192, 8)
        own = {name: share.of(name, value) for name, value in state.items()}
        write_state(tmp_path, 5, own, share)
    files = written(tmp_path, 5)
    assert len(files) == 2
    for file in files:
        assert_named(campaign, file, parts_of(file), lambda: read_state(files, state, None))
        assert_named(campaign, file, parts_of(file), lambda: read_state(files, own, share))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store whose shards consist of several pieces that are no whole rows."""
    generator = torch.Generator().manual_seed(0)
    with StoreWriter(tmp_path / "store", D, dtype=torch.float32, rows_per_shard=400) as writer:
        writer.append(
            torch.randn(ROWS, D, generator=generator), tokens=torch.arange(ROWS, dtype=torch.int32)
        )
    return tmp_path / "store"


def read_all(source: StoreActivations) -> None:
    for name in ("activations", "tokens"):
        source.read(name, 0, source.rows)


def stream(source: Activations) -> None:
    """Read every row once, in the order of a training."""
    for _ in islice(source.batches(50, seed=0), source.rows // 50):
        pass


def test_shards_that_are_read(store: Path, campaign: Campaign) -> None:
    file = store / "activations-00001.safetensors"
    parts = parts_of(file)
    assert len(parts["activations"]) > 2 * PIECE
    assert_named(campaign, file, parts, lambda: read_all(StoreActivations(store)))
    for rows in (1, 7, 400):
        source = StoreActivations(store, block_rows=rows, window_rows=3 * rows)
        one = {"activations": parts["activations"]}
        assert_named(campaign, file, one, partial(stream, source))
    assert_named(campaign, file, one, lambda: stream(open_activations(file)))


def test_reads_of_rows_beside_the_damage_succeed(store: Path) -> None:
    before = StoreActivations(store).read("activations", 0, ROWS)
    file = store / "activations-00001.safetensors"
    offset = places(file)["activations"].offset
    with flipped(file, 8 * offset):
        source = StoreActivations(store)
        assert torch.equal(source.read("activations", 600, ROWS), before[600:])
        with pytest.raises(ValueError, match=f"in the 65536 bytes from byte {offset} on"):
            source.read("activations", 400, 401)
        changed = StoreActivations(store, verify_reads=False).read("activations", 0, ROWS)
        assert (changed != before).sum() == 1


def test_swapped_pieces_of_a_shard(store: Path) -> None:
    file = store / "activations-00000.safetensors"
    begin = places(file)["activations"].offset
    content = bytearray(file.read_bytes())
    first, second = (slice(begin + i * PIECE, begin + (i + 1) * PIECE) for i in (0, 1))
    content[first], content[second] = content[second], content[first]
    file.write_bytes(content)
    with pytest.raises(ValueError, match="activations, in the 65536 bytes"):
        read_all(StoreActivations(store))


def columns_of(path: Path) -> dict[str, bytes]:
    """Return some bytes of the values of each column, after the page header, of a Parquet file."""
    import pyarrow.parquet as pq

    group = pq.ParquetFile(path).metadata.row_group(0)
    content = path.read_bytes()
    found = {}
    for column in map(group.column, range(group.num_columns)):
        begin = column.dictionary_page_offset + 100
        found[f"column {column.path_in_schema}"] = content[begin : begin + 50]
    return found


def test_tables(tmp_path: Path, campaign: Campaign) -> None:
    path = tmp_path / "features.parquet"
    generator = torch.Generator().manual_seed(0)
    columns = {name: torch.rand(500, generator=generator).numpy() for name in ("score", "low")}
    write_table(path, columns)
    assert_named(campaign, path, columns_of(path), lambda: read_table(path))
    anywhere = {HEADER: path.read_bytes()}
    assert_named(campaign, path, anywhere, lambda: read_table(path))


def test_matches(tmp_path: Path, campaign: Campaign) -> None:
    saes = [saefast.SAE(6, 40, k=3, seed=seed) for seed in range(2)]
    saefast.match_all(saes, out=tmp_path, progress=False)
    path = tmp_path / "0-1.parquet"
    assert_named(campaign, path, {HEADER: path.read_bytes()}, lambda: read_pair(path))


def test_a_damaged_unfinished_matching_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "a.unfinished"
    kept = Unfinished(path, {"memory": 1})
    kept._written = -1e9
    kept.keep(found=torch.arange(10.0))
    assert Unfinished(path, {"memory": 1}).tensors.keys() == {"found"}
    with flipped(path, 8 * path.stat().st_size - 1):
        assert Unfinished(path, {"memory": 1}).tensors == {}
