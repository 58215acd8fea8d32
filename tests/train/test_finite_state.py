"""Weights and moments that are NaN or infinite are not written, by one process or several."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_runs import ROWS, checkpoint_of, config, results_of, train
from torch import Tensor

from saefast import Rules, TrainConfig
from saefast.activations import TensorActivations
from saefast.train.finite_state import check_weights
from saefast.train.ranks import Simulated
from saefast.train.seed_trainer import SeedTrainer


class Spoiled:
    """Trainings in which a weight or a moment gets a value after a step.

    Args:
        name: name of its tensor in the state of a step.
        value: the value of one of its entries.
        step: number of the step, from 0.
        rank: rank whose share is spoiled, of several.
    """

    def __init__(self, name: str, value: float, step: int, rank: int = 0) -> None:
        self.name, self.value, self.step, self.rank = name, value, step, rank

    def __enter__(self) -> "Spoiled":
        self._patch = pytest.MonkeyPatch()
        real = SeedTrainer.train

        def spoiling(trainer: SeedTrainer, number: int, batch: Any) -> None:
            real(trainer, number, batch)
            share = trainer.step.share
            if number == self.step and (share is None or share.ranks.rank == self.rank):
                values: Tensor = trainer.step.state_dict()[self.name]
                values.view(-1)[-1] = self.value

        self._patch.setattr(SeedTrainer, "train", spoiling)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


WEIGHTS = [
    ("topk", "W_enc", math.nan),
    ("topk", "b_enc", math.inf),
    ("topk", "W_dec", -math.inf),
    ("topk", "b_dec", math.nan),
    ("batchtopk", "batch_threshold", math.nan),
    ("jumprelu", "jump_threshold", -math.inf),
    ("gated", "r_mag", math.inf),
]
MOMENTS = [("topk", "W_enc", "second"), ("topk", "b_dec", "first"), ("gated", "r_mag", "second")]
RESUMED = {"checkpoint_minutes": 0.0, "resume": True}


def check_refused(spoiled: Spoiled, variant: str, reason: str, folder: Path) -> None:
    """Check that step 6 leaves no checkpoint, and that the run resumes from step 5."""
    configuration = config(variant=variant, tokens=128 * 8, k_start=None)
    train(configuration, out=folder / "alone")
    start = "the checkpoint of step 6 is not written and that of step 5 is intact, since"
    with spoiled, pytest.raises(ValueError, match=f"^{start} {re.escape(reason)} may help$"):
        train(configuration, out=folder / "run", checkpoint_minutes=0.0)
    assert checkpoint_of(folder / "run") == 5
    train(configuration, out=folder / "run", **RESUMED)
    assert results_of(folder / "run") == results_of(folder / "alone")


@pytest.mark.parametrize(("variant", "name", "value"), WEIGHTS)
def test_a_checkpoint_with_such_weights_is_refused(
    variant: str, name: str, value: float, tmp_path: Path
) -> None:
    reason = f"{name} of seed-0 is NaN or infinite; a lower lr"
    check_refused(Spoiled(name, value, 5), variant, reason, tmp_path)


@pytest.mark.parametrize(("variant", "name", "which"), MOMENTS)
def test_a_checkpoint_with_such_moments_is_refused(
    variant: str, name: str, which: str, tmp_path: Path
) -> None:
    """All weights are finite after the step that makes them so."""
    advice = "activation_scaling or Rules(clip=...)"
    reason = f"the {which} moment of {name} of seed-0 is NaN or infinite; {advice}"
    check_refused(Spoiled(f"{name}.{which}", math.inf, 5), variant, reason, tmp_path)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "no folder"])
def test_gradients_whose_squares_overflow_are_refused(
    folder: bool, size: int, tmp_path: Path
) -> None:
    """The loss and all weights stay finite, but the weights do not change any more."""
    large, out = TensorActivations(1e12 * ROWS), tmp_path / "run" if folder else None
    without = config(latents=300, tokens=128 * 4, activation_scaling="none", rules=Rules())
    first = "checkpoint of step 1 is not written" if folder else "training ends without a result"
    message = f"^the {first}, since the second moment of .* of seed-0 is NaN or infinite"

    def run(configuration: TrainConfig) -> None:
        arguments = {"rows": large, "out": out, "checkpoint_minutes": 0.0}
        Simulated(size).run(lambda ranks: len(train(configuration, ranks=ranks, **arguments)))

    with pytest.raises(ValueError, match=message):
        run(without)
    assert not list(tmp_path.rglob("*.safetensors"))
    out = tmp_path / "clipped" if folder else None
    run(dataclasses.replace(without, rules=Rules(clip=1.0)))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "W_enc.second", "W_dec.second"])
def test_a_rank_with_such_values_ends_all(name: str, size: int, tmp_path: Path) -> None:
    configuration = config(latents=300, tokens=128 * 4)
    train(configuration, out=tmp_path / "alone")

    def run(**arguments: Any) -> None:
        Simulated(size).run(
            lambda ranks: len(train(configuration, ranks=ranks, out=tmp_path / "run", **arguments))
        )

    weight, _, moment = name.partition(".")
    refused = f"the {moment} moment of {weight}" if moment else weight
    before = "the checkpoint of step 4 is not written and that of step 3 is intact"
    message = f"{before}, since {refused} of seed-0 is NaN"
    with Spoiled(name, math.nan, 3, rank=size - 1), pytest.raises(ValueError, match=message):
        run(checkpoint_minutes=0.0)
    assert checkpoint_of(tmp_path / "run") == 3
    assert not list((tmp_path / "run/seed-0").glob("*.safetensors"))
    run(**RESUMED)
    assert results_of(tmp_path / "run") == results_of(tmp_path / "alone")


@pytest.mark.parametrize("size", [1, 2])
def test_without_a_folder_no_rank_gets_such_saes(size: int) -> None:
    message = "the training ends without a result, since b_enc of seed-0 is NaN or infinite"
    with Spoiled("b_enc", math.nan, 3, rank=size - 1), pytest.raises(ValueError, match=message):
        Simulated(size).run(
            lambda ranks: train(config(latents=300, tokens=128 * 4), ranks=ranks, out=None)
        )


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", ["W_dec", "b_enc"])
def test_weights_that_the_scales_make_infinite_are_refused(
    name: str, size: int, tmp_path: Path
) -> None:
    """The checkpoint holds weights for scaled activations, the finished SAE those for unscaled."""
    rows = {"W_dec": TensorActivations(ROWS, 1e3 * ROWS), "b_enc": 1e3 * ROWS}[name]
    message = f"the training ends without a result, since {name} of seed-0 is NaN or infinite"
    with Spoiled(name, 3e38, 3, rank=size - 1), pytest.raises(ValueError, match=message):
        Simulated(size).run(
            lambda ranks: train(
                config(latents=300, tokens=128 * 4), rows=rows, ranks=ranks, out=tmp_path
            )
        )
    assert checkpoint_of(tmp_path) == 4
    assert not list((tmp_path / "seed-0").glob("sae_weights*"))


def test_masked_latents_are_accepted() -> None:
    masked = {"b_enc": torch.tensor([0.0, -math.inf]), "jump_threshold": torch.tensor([math.inf])}
    check_weights("seed-0", masked | {"W_enc": torch.empty(0, 3)}, "not raised")
