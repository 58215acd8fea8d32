"""`verify` names damaged and missing files in SAEs, stores, checkpoints, runs and sweeps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.flipped_bits import flipped
from helpers.sae_files import HOLDS, some_sae
from helpers.small_store import write
from safetensors.torch import load_file, save_file

import saefast
from saefast.activations.safetensors_file import places
from saefast.cli import main
from saefast.damage import examine
from saefast.disk.tables import write_table

WEIGHTS = "seed-1/sae_weights.safetensors"


def first_bit(path: Path, tensor: str) -> int:
    return 8 * places(path)[tensor].offset


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like a sweep's: a table, and two cells with runs and a store."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    config = saefast.TrainConfig(latents=16, k=2, seeds=(0, 1), tokens=600, batch_size=100)
    for name in ("cells/a", "cells/b"):
        saefast.train_saes(rows, config, out=folder / name, progress=False)
    write(folder / "cells/a/store/train")
    write_table(folder / "results.parquet", {"cell": ["a", "b"], "score": [0.5, 0.25]})
    return folder


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


def test_an_intact_folder(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    assert saefast.verify(sweep) == []
    checked = {str(each.path.relative_to(sweep)) for each in examine(sweep) if each.has_checksums}
    run = [f"seed-{s}/{n}" for s in (0, 1) for n in ("sae_weights", "training/step-6")]
    run += [f"seed-{s}/sparsity" for s in (0, 1)]
    shards = {f"cells/a/store/train/activations-0000{i}.safetensors" for i in range(3)}
    assert checked == {
        *(f"cells/{cell}/{name}.safetensors" for cell in "ab" for name in run),
        *("cells/a/store/train/index.json", "results.parquet", *shards),
    }
    assert main(["verify", str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert printed == (
        "files that are damaged or missing: 0; intact: 17; readable, without checksums: 6\n"
    )


def test_damaged_tensors_are_named(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    run = sweep / "cells/b"
    with (
        flipped(run / WEIGHTS, first_bit(run / WEIGHTS, "W_dec")),
        flipped(sweep / "results.parquet", 40),
    ):
        damaged = saefast.verify(sweep)
        assert [str(damage) for damage in damaged] == [
            f"{sweep}/results.parquet: column cell differs from its checksum",
            f"{run / WEIGHTS}: W_dec differs from its checksum",
        ]
        assert saefast.verify(run / WEIGHTS) == damaged[1:]
        assert main(["verify", str(sweep)]) == 1
        assert capsys.readouterr().out.splitlines() == [
            *map(str, damaged),
            "files that are damaged or missing: 2; intact: 15; readable, without checksums: 6",
        ]
        assert main(["verify", str(sweep), "--json"]) == 1
        facts = json.loads(capsys.readouterr().out)
    assert facts["intact"] == 15
    assert facts["damaged"][1] == {
        "path": str(run / WEIGHTS),
        "part": "W_dec",
        "reason": "differs from its checksum",
    }
    assert saefast.verify(sweep) == []


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-3])

    return apply


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def swap(first: str, second: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / first).rename(folder / "x")
        (folder / second).rename(folder / first)
        (folder / "x").rename(folder / second)

    return apply


def flip(name: str, tensor: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[first_bit(folder / name, tensor) // 8] ^= 1
        (folder / name).write_bytes(content)

    return apply


CHECKPOINT = "seed-0/training/step-6.safetensors"
SHARD = "store/train/activations-0000{}.safetensors"
HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "a moment": (flip(CHECKPOINT, "W_enc"), f"{CHECKPOINT}: W_enc differs from its checksum"),
    "no checkpoint": (remove(CHECKPOINT), f"{CHECKPOINT} is missing or incomplete, although run"),
    "no weights": (remove(WEIGHTS), "seed-1 holds no weights, although run.json says"),
    "short weights": (cut(WEIGHTS), f"{WEIGHTS} is truncated or not a safetensors file"),
    "a shard": (flip(SHARD.format(1), "activations"), f"{SHARD.format(1)}: activations differs"),
    "no shard": (remove(SHARD.format(1)), f"{SHARD.format(1)} is missing; the index lists it"),
    "short shard": (cut(SHARD.format(1)), f"{SHARD.format(1)} is truncated or not a safetensors"),
    "swapped shards": (
        swap(SHARD.format(0), SHARD.format(1)),
        f"{SHARD.format(0)} does not have the checksum in the index",
    ),
    "settings": (put("seed-0/cfg.json", "{"), "seed-0/cfg.json is not JSON"),
    "run file": (put("run.json", '{"checkpoint": 1}'), "run.json is not the file of a training"),
    "index": (put("store/train/index.json", '{"shards": 1}'), "index.json is not the index of a"),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_to_a_run_is_found(harm: str, sweep: Path) -> None:
    apply, message = HARM[harm]
    apply(sweep / "cells/a")
    damaged = saefast.verify(sweep)
    assert str(damaged[0]).startswith(str(sweep / "cells/a"))
    assert message in str(damaged[0])
    assert len(damaged) == (2 if harm == "swapped shards" else 1)


def test_an_incomplete_set_of_ranks_is_missing(sweep: Path) -> None:
    folder = sweep / "cells/a/seed-0/training"
    (folder / "step-6").mkdir()
    (folder / "step-6.safetensors").rename(folder / "step-6/rank-0-of-2.safetensors")
    assert "step-6.safetensors is missing or incomplete" in str(saefast.verify(sweep)[0])


def test_files_without_checksums_load_and_are_reported_apart(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    """Files of other libraries and of earlier versions."""
    run = sweep / "cells/a"
    for file in (*run.rglob("*.safetensors"),):
        save_file(load_file(file), file)
    before = saefast.load_sae(run / "seed-0")
    assert [damage for damage in saefast.verify(run) if "index" not in damage.reason] == []
    assert not any(each.has_checksums for each in examine(run / "seed-0"))
    with flipped(run / WEIGHTS, first_bit(run / WEIGHTS, "W_dec")):
        saefast.load_sae(run / "seed-1")  # the damage cannot be seen
    saefast.train_saes(
        torch.randn(600, 8, generator=torch.Generator().manual_seed(0)),
        saefast.TrainConfig(latents=16, k=2, seeds=(0, 1), tokens=600, batch_size=100),
        out=run,
        resume=True,
        progress=False,
    )
    assert torch.equal(saefast.load_sae(run / "seed-0").W_dec, before.W_dec)
    assert main(["verify", str(run / "seed-0")]) == 0
    assert "intact: 0; readable, without checksums: 4" in capsys.readouterr().out


@pytest.mark.parametrize("format", HOLDS)
def test_every_format_can_be_verified(format: str, tmp_path: Path) -> None:
    saefast.save_sae(some_sae(HOLDS[format][0]), tmp_path / "sae", format=format)
    assert saefast.verify(tmp_path) == []
    assert sum(each.has_checksums for each in examine(tmp_path)) == 1


def test_files_of_torch_without_checksums_load(tmp_path: Path) -> None:
    folder = saefast.save_sae(some_sae("topk"), tmp_path / "sae", format="dictionary_learning")
    held = torch.load(folder / "ae.pt")
    expected = saefast.load_sae(folder)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(held, folder / "ae.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(saefast.load_sae(folder).W_dec, expected.W_dec)
    assert not any(each.has_checksums for each in examine(folder))


def test_paths_with_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        saefast.verify(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"holds none of the files .* \.parquet"):
        saefast.verify(tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "holds none of the files" in capsys.readouterr().err
    with pytest.raises(
        FileNotFoundError, match=r"a\.txt is none of the files that can be verified"
    ):
        saefast.verify(tmp_path / "a.txt")


def test_a_file_without_a_suffix_is_verified(sweep: Path) -> None:
    """The hub's cache names files by their hash."""
    blob = shutil.copy(sweep / "cells/a" / WEIGHTS, sweep / "0a1b")
    assert saefast.verify(blob) == []
    with flipped(blob, first_bit(blob, "W_dec")):
        assert [damage.part for damage in saefast.verify(blob)] == ["W_dec"]


def test_files_that_are_being_written_are_left_out(sweep: Path) -> None:
    (sweep / ".cells.part").mkdir()
    (sweep / ".cells.part/a.safetensors").write_text("half")
    assert saefast.verify(sweep) == []
