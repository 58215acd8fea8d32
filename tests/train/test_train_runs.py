"""Several runs in one pass: each folder has the files of the run alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_runs import ROWS, checkpoint_of, config, files_of, train

from saefast.activations.tensors import TensorActivations
from saefast.train.seed_trainer import SeedTrainer
from saefast.train.train import Training, train_runs

pytestmark = pytest.mark.usefixtures("light")

CONFIGS = {
    "wide": config(latents=48, seeds=(0, 3)),
    "batchtopk": config(variant="batchtopk"),
    "sparse": config(k=2),
}


def together(out: Path, names: tuple[str, ...] = tuple(CONFIGS), **options: Any) -> None:
    runs = [Training((CONFIGS[name],), out / name) for name in names]
    train_runs(ROWS, runs, progress=False, log_every=7, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for name, each in CONFIGS.items():
        train(each, out=out / name)
    return out


def test_runs_have_the_bytes_of_each_run_alone(alone: Path, tmp_path: Path) -> None:
    together(tmp_path)
    for name in CONFIGS:
        assert files_of(tmp_path / name) == files_of(alone / name)


def test_the_activations_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    batches = TensorActivations.batches

    def counted(source: Any, *arguments: Any, **options: Any) -> Any:
        passes.append(options)
        return batches(source, *arguments, **options)

    monkeypatch.setattr(TensorActivations, "batches", counted)
    together(tmp_path)
    assert len(passes) == 1


def broken_off(trainer: SeedTrainer, number: int, batch: Any) -> None:
    if number == 9:
        raise OSError("interrupted")
    STEP(trainer, number, batch)


STEP = SeedTrainer.train


def test_runs_that_stopped_at_different_steps_end_equally(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third has not started, the second is finished, and the first stopped in between."""
    together(tmp_path, ("batchtopk",))
    with monkeypatch.context() as patch:
        patch.setattr(SeedTrainer, "train", broken_off)
        with pytest.raises(OSError, match="interrupted"):
            together(tmp_path, ("wide",), checkpoint_minutes=0)
    assert checkpoint_of(tmp_path / "wide") == 9
    with pytest.raises(FileExistsError, match="resume=True"):
        together(tmp_path)
    together(tmp_path, resume=True)
    for name in CONFIGS:
        assert files_of(tmp_path / name) == files_of(alone / name)


def test_runs_on_one_pass_share_a_stream(tmp_path: Path) -> None:
    runs = [
        Training((each,), tmp_path / str(each.batch_size))
        for each in (config(), dataclasses.replace(config(), batch_size=16))
    ]
    with pytest.raises(ValueError, match="batch_size must be the same in all configs"):
        train_runs(ROWS, runs, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_results_are_in_the_order_of_runs_and_seeds() -> None:
    runs = [Training((each,), None) for each in CONFIGS.values()]
    found = train_runs(ROWS, runs, progress=False)
    assert [[sae.m for sae in each] for each in found] == [[48, 48], [96], [96]]
    for run, saes in zip(runs, found, strict=True):
        alone = train(run.configs[0])
        assert all(torch.equal(a.W_dec, b.W_dec) for a, b in zip(saes, alone, strict=True))
