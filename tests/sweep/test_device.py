"""The device of the language models of a sweep."""

from pathlib import Path

import pytest
import torch
from helpers.loads import record_loads
from helpers.small_sweep import InlineWorkers
from helpers.tiny_lm import harvest_of, saved, write_texts
from helpers.tiny_run import as_toml

from saefast.sweep import Sweep, SweepFolder, pool, read_sweep, run_sweep
from saefast.sweep.tasks import Schedule

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("devices")
    saved(made / "model")
    write_texts(made / "texts")
    base = {
        "harvest": harvest_of(made, tokens=400, held_out=50),
        "train": {"latents": 40, "k": 3, "tokens": 800, "batch_size": 64, "seeds": [0]},
        "trainer": {"device": "cpu"},
    }
    (made / "base.toml").write_text(as_toml(base))
    return made


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    return record_loads(monkeypatch)


def on(folder: Path, *devices: str) -> Sweep:
    text = 'base = "base.toml"\n[grid]\n"train.k" = [2, 3]\n'
    text += f'"harvest.device" = {list(devices)}\n'
    (folder / "sweep.toml").write_text(text)
    return read_sweep(folder / "sweep.toml")


@pytest.mark.usefixtures("no_gpu")
def test_a_missing_gpu_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the cell .* cannot be run: device must be available"):
        run_sweep(on(folder, "cuda"), tmp_path / "out", until="harvest")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_gpu")
def test_the_driver_of_a_cluster_needs_no_gpu(folder: Path, tmp_path: Path) -> None:
    schedule = Schedule(SweepFolder(tmp_path), on(folder, "cuda").cells, "train")
    schedule.check(here=False)
    with pytest.raises(ValueError, match="device must be available"):
        schedule.check(here=True)


def test_another_gpu_than_the_first_of_a_worker_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"cpu or cuda in a sweep, .* got 'cuda:1'"):
        on(folder, "cuda:1")
    assert len(on(folder, "cuda:0").cells) == 2


def test_cells_of_one_device_share_a_harvest(
    folder: Path, tmp_path: Path, loaded: list[tuple[str, str]]
) -> None:
    run_sweep(on(folder, "cpu", "cuda"), tmp_path, until="train")
    assert sorted(set(loaded)) == [("model", "cpu"), ("model", "cuda")]
    assert len(loaded) == 2
    assert len(list((tmp_path / "stores").glob("harvest-*"))) == 2


def test_finished_cells_are_kept_on_another_device(
    folder: Path, tmp_path: Path, loaded: list[tuple[str, str]]
) -> None:
    (tmp_path / "sweep.toml").write_text(
        f'base = "{folder / "base.toml"}"\n[settings]\n"harvest.device" = "cuda"\n'
        '[grid]\n"train.k" = [2, 3]\n'
    )
    gpu = read_sweep(tmp_path / "sweep.toml")
    run_sweep(gpu, tmp_path / "out", until="train")
    text = (tmp_path / "sweep.toml").read_text()
    (tmp_path / "sweep.toml").write_text(text.replace("cuda", "cpu"))
    cpu = read_sweep(tmp_path / "sweep.toml")
    assert run_sweep(cpu, tmp_path / "out", until="train").skipped == 2
    assert loaded == [("model", "cuda")]
