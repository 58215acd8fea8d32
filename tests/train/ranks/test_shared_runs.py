"""Runs of simulated ranks write the same files as one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lifetimes import threads_named, without_collection
from helpers.training_runs import (
    ROWS,
    SEVERAL,
    assert_same_sae,
    checkpoint_names,
    checkpoint_of,
    config,
    names_of,
    results_of,
    train,
)
from safetensors import safe_open

from saefast import SAE, Rules, TrainConfig, load_sae
from saefast.activations import IteratorActivations, TensorActivations
from saefast.train import stored_saes
from saefast.train.checkpoint import RunFile
from saefast.train.loop import TrainingLoop
from saefast.train.ranks import Ranks, Simulated, finished
from saefast.train.seed_trainer import SeedTrainer

WIDE = config(latents=300, tokens=2500, rules=Rules(clip=0.5))


class Bare:
    """A rank with the five names of the protocol `Ranks` and no other."""

    def __init__(self, ranks: Ranks) -> None:
        for name in ("rank", "size", "all_to_all", "all_gather", "fail"):
            setattr(self, name, getattr(ranks, name))


def train_with(size: int, configuration: Any, **arguments: Any) -> list[SAE]:
    """Train by simulated ranks, which must return the same SAEs."""
    each = Simulated(size).run(lambda ranks: train(configuration, ranks=Bare(ranks), **arguments))
    for saes in each[1:]:
        for sae, first in zip(saes, each[0], strict=True):
            assert_same_sae(sae, first)
    return each[0]


@pytest.mark.parametrize(
    ("seeds", "size"),
    [
        ((0,), 2),
        ((0,), 4),
        ((0, 3), 2),
        ((0, 3), 4),
        ((0, 3), 8),
        ((0, 3), 16),
        ((0, 1, 3), 4),
        ((0, 1, 3), 16),
        ((0, 1, 2, 3, 4), 2),
    ],
)
def test_a_run_of_ranks_has_the_files_of_one_process(
    seeds: tuple[int, ...], size: int, tmp_path: Path
) -> None:
    configuration = TrainConfig(**{**vars(WIDE), "seeds": seeds})
    alone = train(configuration, out=tmp_path / "alone")
    together = train_with(size, configuration, out=tmp_path / "ranks")
    for seed, mine, right in zip(seeds, together, alone, strict=True):
        assert_same_sae(mine, right)
        assert torch.equal(mine.firing_rate, load_sae(tmp_path / f"alone/seed-{seed}").firing_rate)
    assert results_of(tmp_path / "ranks") == results_of(tmp_path / "alone")


@pytest.mark.parametrize("seeds", [(0,), (0, 3)])
def test_one_rank_reads_the_activations(seeds: tuple[int, ...]) -> None:
    configuration = config(seeds=seeds, tokens=1000)
    items = [
        (ROWS[start : start + 100], ROWS[start : start + 100, :10]) for start in range(0, 1500, 100)
    ]
    read = [0, 0]

    def counted(rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for item in items:
            read[rank] += 1
            yield item

    sources = [IteratorActivations(counted(rank), d=ROWS.shape[1]) for rank in range(2)]
    each = Simulated(2).run(
        lambda ranks: train(configuration, rows=sources[ranks.rank], ranks=Bare(ranks))
    )
    assert read[0] >= 10
    assert read[1] == 0
    for mine, right in zip(each[1], train(configuration, rows=items), strict=True):
        assert_same_sae(mine, right)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_return_initial_saes_that_are_not_centred(size: int) -> None:
    initial = [SAE(ROWS.shape[1], 96, k=4, seed=seed, centred=False) for seed in (0, 3)]
    for sae in initial:
        sae.b_dec.data.fill_(0.5)
        sae.metadata = {"format": {"key": "value"}}
    configuration = config(seeds=(0, 3), tokens=500)
    alone = train(configuration, initial=initial)
    for saes in Simulated(size).run(
        lambda ranks: train(configuration, initial=initial, ranks=Bare(ranks))
    ):
        for sae, right in zip(saes, alone, strict=True):
            assert torch.equal(sae(ROWS), right(ROWS))
            assert sae.metadata == right.metadata == {"format": {"key": "value"}}


def test_an_error_of_the_activations_stops_all_ranks() -> None:
    bad = ROWS.clone()
    bad[700, 3] = torch.nan
    messages: dict[int, str] = {}

    def caught(ranks: Ranks) -> None:
        try:
            train(config(data_seed=5), rows=bad, ranks=ranks)
        except Exception as error:
            messages[ranks.rank] = f"{type(error).__name__}: {error}"
            raise

    with pytest.raises(ValueError, match="row 700"):
        Simulated(2).run(caught)
    assert "row 700" in messages[0]


def test_the_thread_that_reads_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = []
    real = TrainingLoop.finish

    def noted(loop: TrainingLoop, keep_training: bool) -> None:
        loops.append(loop)
        real(loop, keep_training)

    monkeypatch.setattr(TrainingLoop, "finish", noted)
    train_with(2, config(tokens=1000))
    assert len(loops) == 2
    assert threads_named("prefetch") == []


@pytest.mark.parametrize("method", ["_look_ahead", "_with_variance"])
def test_the_thread_that_reads_ends_with_a_failed_training(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(TrainingLoop, method)

    def fails(loop: TrainingLoop, *arguments: Any) -> None:
        real(loop, *arguments)
        raise RuntimeError("the culprit")

    monkeypatch.setattr(TrainingLoop, method, fails)
    with without_collection(), pytest.raises(RuntimeError, match="the culprit") as caught:
        train_with(2, config(tokens=1000))
    assert threads_named("prefetch") == []
    del caught  # the error refers to the loop, which would otherwise be freed before


@pytest.mark.parametrize("seeds", [(0,), (0, 3)])
def test_without_a_folder_every_rank_gets_the_saes(seeds: tuple[int, ...]) -> None:
    configuration = TrainConfig(**{**vars(WIDE), "seeds": seeds, "tokens": 1000})
    alone, together = train(configuration), train_with(2, configuration)
    assert isinstance(together, list)
    for mine, right in zip(together, alone, strict=True):
        assert_same_sae(mine, right)
        assert torch.equal(mine.firing_rate, right.firing_rate)


class _Loads:
    """Paths that are loaded as SAEs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []

        def counting(path: Path) -> SAE:
            self.paths.append(path)
            return load_sae(path)

        monkeypatch.setattr(stored_saes, "load_sae", counting)


def test_with_a_folder_no_rank_has_the_saes_before_they_are_accessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rank has them after the training or when the run is found to be finished."""
    loads = _Loads(monkeypatch)
    configuration = config(latents=300, seeds=(0, 1, 2), tokens=1000)
    for _ in range(2):
        each = Simulated(2).run(
            lambda ranks: train(configuration, ranks=ranks, out=tmp_path / "run", resume=True)
        )
        assert loads.paths == []
        first, last = each[0][0], each[0][-1]
        assert (first, last) == (each[0][0], each[0][2])
        assert each[0][1:] == [each[0][1], last]
        assert loads.paths == [tmp_path / f"run/seed-{seed}" for seed in (0, 2, 1)]
        assert [len(saes) for saes in each] == [3, 3]
        loads.paths.clear()


SAVED: dict[str, dict[str, Any]] = {
    "unscaled": {"activation_scaling": "none"},
    "by norm": {"by_norm": True, "rules": Rules(unit_norm=False)},
    "free norms": {"rules": Rules(unit_norm=False), "decoder_norm": 0.3},
    "cov": {"directions": "cov", "b_dec": "mean"},
    "untied": {"tied": False},
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("latents", [300, 2500])
def test_settings_of_the_beginning_and_the_end_give_the_same_files(
    name: str, latents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pieces and blocks of which there are several."""
    monkeypatch.setattr(finished, "PIECE", 5000)
    configuration = config(latents=latents, tokens=300, **SAVED[name])
    train(configuration, out=tmp_path / "alone")
    train_with(4, configuration, out=tmp_path / "ranks")
    assert results_of(tmp_path / "ranks") == results_of(tmp_path / "alone")


def test_transcoders_and_given_saes_give_the_same_files(tmp_path: Path) -> None:
    pairs = TensorActivations(ROWS, ROWS[:, :9] * 3 + 1)
    for name, arguments in (
        ("transcoder", {"rows": pairs}),
        ("initial", {"initial": train(config(latents=300, seeds=(5,), tokens=300))}),
    ):
        short = config(latents=300, tokens=300)
        train(short, out=tmp_path / f"{name}-alone", **arguments)
        train_with(4, short, out=tmp_path / name, **arguments)
        assert results_of(tmp_path / name) == results_of(tmp_path / f"{name}-alone")


@pytest.mark.parametrize("variant", ["abstopk", "batchtopk", "matryoshka", "relu", "jumprelu"])
def test_variants_have_the_files_of_one_process(variant: str, tmp_path: Path) -> None:
    configuration = TrainConfig(**{**vars(WIDE), "variant": variant, "tokens": 1000})
    train(configuration, out=tmp_path / "alone")
    train_with(2, configuration, out=tmp_path / "ranks")
    assert results_of(tmp_path / "ranks") == results_of(tmp_path / "alone")


@pytest.mark.parametrize("size", [4, 8])
def test_fewer_saes_of_several_kinds_than_ranks_are_all_divided(size: int, tmp_path: Path) -> None:
    configurations = [
        TrainConfig(**{**vars(WIDE), "tokens": 1000, "name": name, **changes})
        for name, changes in (
            ("wide", {}),
            ("jumps", {"variant": "jumprelu", "latents": 100, "rules": Rules()}),
            ("nested", {"variant": "matryoshka", "k": 6, "seeds": (2,)}),
        )
    ]
    train(configurations, out=tmp_path / "alone", checkpoint_minutes=0)
    train_with(size, configurations, out=tmp_path / "ranks", checkpoint_minutes=0)
    assert results_of(tmp_path / "ranks") == results_of(tmp_path / "alone")
    for name in ("wide-seed-0", "jumps-seed-0", "nested-seed-2"):
        parts = (tmp_path / "ranks" / name / "training").rglob("rank-*")
        assert {path.name for path in parts} == {
            f"rank-{rank}-of-{size}.safetensors" for rank in range(size)
        }


def test_gated_saes_are_trained_whole_by_one_rank_each() -> None:
    configuration = TrainConfig(
        **{**vars(WIDE), "variant": "gated", "seeds": (0, 1), "tokens": 1000}
    )
    for mine, right in zip(train_with(2, configuration), train(configuration), strict=True):
        assert_same_sae(mine, right)


class _Broken(Exception):
    pass


def test_a_run_goes_on_with_another_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(WIDE, out=tmp_path / "unbroken")
    out = tmp_path / "broken"
    real = SeedTrainer.train
    for size, stop in ((4, 5), (2, 9), (1, 13), (4, 100)):

        def breaking(trainer: SeedTrainer, number: int, batch: Any, stop: int = stop) -> None:
            if number == stop:
                raise _Broken
            real(trainer, number, batch)

        monkeypatch.setattr(SeedTrainer, "train", breaking)
        settings = {"out": out, "resume": True, "checkpoint_minutes": 0}
        if stop < WIDE.steps:
            with pytest.raises(_Broken):
                train_with(size, WIDE, **settings) if size > 1 else train(WIDE, **settings)
            assert checkpoint_of(out) == stop
            assert checkpoint_names(out) == names_of(size, stop)
        else:
            train_with(size, WIDE, **settings)
    assert results_of(out) == results_of(tmp_path / "unbroken")


def test_run_json_names_a_step_after_all_files_of_it_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the step before are removed later, so that one of both is always complete."""
    files, real = tmp_path / "run/seed-0/training", RunFile.write
    found: list[list[tuple[int, int]]] = []

    def noted(run: RunFile) -> None:
        steps = [run.step - 1, run.step]
        found.append(
            [(step, len(list(files.glob(f"step-{step}/rank-*-of-4.*")))) for step in steps]
        )
        real(run)

    monkeypatch.setattr(RunFile, "write", noted)
    train_with(4, config(latents=300, tokens=128 * 3), out=tmp_path / "run", checkpoint_minutes=0)
    assert found[1:4] == [[(0, 0), (1, 4)], [(1, 4), (2, 4)], [(2, 4), (3, 4)]]


def test_files_of_ranks_name_their_latents_and_columns(tmp_path: Path) -> None:
    train_with(4, config(latents=300, tokens=128), out=tmp_path)
    metadata = []
    for rank in range(4):
        path = tmp_path / f"seed-0/training/step-1/rank-{rank}-of-4.safetensors"
        with safe_open(path, "pt") as file:
            metadata.append((file.metadata()["rows"], file.metadata()["columns"]))
            assert file.get_slice("W_dec").get_shape() == [300, 4]
    latents = ["0:64", "64:128", "128:192", "192:300"]
    assert metadata == [(f"{rows} of 300", f"{r} of 4 of 16") for r, rows in enumerate(latents)]


def test_the_first_rank_alone_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[int, bool] = {}
    real = TrainingLoop.train

    def noted(loop: TrainingLoop, log_every: int, minutes: float, progress: bool) -> None:
        shown[loop._ranks.rank] = progress
        real(loop, log_every, minutes, False)

    monkeypatch.setattr(TrainingLoop, "train", noted)
    train_with(4, config(tokens=128, latents=300), progress=True)
    assert shown == {0: True, 1: False, 2: False, 3: False}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variant": "gated"}, f"{SEVERAL}, got gated; train it by one process"),
        (
            {"loss": lambda sae, *_: sae.W_enc.sum()},
            f"{SEVERAL}, got a loss of your own; train it by one process",
        ),
        (
            {"rules": Rules(tether=0.9)},
            "several ranks do not train with a tether; train with it by one process",
        ),
    ],
    ids=["gated", "loss", "tether"],
)
def test_settings_of_one_process_are_refused_before_the_training(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        train_with(2, config(latents=300, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run/run.json").exists()
    assert not list((tmp_path / "run").glob("seed-*"))


def test_ranks_with_different_settings_are_refused(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> list[SAE]:
        other = TrainConfig(**{**vars(WIDE), "lr": 0.1 * (1 + ranks.rank)})
        return train(other, ranks=ranks, out=tmp_path / "run")

    with pytest.raises(ValueError, match="all ranks must have the same settings"):
        Simulated(2).run(work)
    assert not (tmp_path / "run" / "run.json").exists()
