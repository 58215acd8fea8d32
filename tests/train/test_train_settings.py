"""Settings of a training: each changes the trained SAE, and bad ones raise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tolerance import assert_same_bits
from helpers.training_runs import ROWS, config, metrics_of, train
from torch import Tensor

from saefast import SAE, Penalty, Rules, load_sae, reference
from saefast.activations import TensorActivations


def test_schedules_are_applied_to_steps(tmp_path: Path) -> None:
    train(config(auxk=None), out=tmp_path / "k")  # falls from 8 to 4 in a third of 32 steps
    lines = metrics_of(tmp_path / "k")
    assert [line["k"] for line in lines] == [6, 4, 4, 4, 4]
    assert [round(line["l0"]) for line in lines] == [7, 4, 4, 4, 4]
    assert lines[0]["lr"] == 2e-3
    assert lines[-1]["lr"] < 1e-3
    still = {"variant": "relu", "lr": 0.0, "sparsity": 10.0, "auxk": None, "tokens": 128 * 28}
    train(config(**still, sparsity_warmup=1.0), out=tmp_path / "rising")
    train(config(**still, sparsity_warmup=0.0), out=tmp_path / "flat")
    rising, flat = (metrics_of(tmp_path / name) for name in ("rising", "flat"))
    assert rising[0]["loss"] < 0.5 * flat[0]["loss"]
    losses = [line["loss"] for line in rising]
    assert losses == sorted(losses)
    assert losses[-1] < flat[-1]["loss"] < 1.2 * losses[-1]


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("topk", {"by_norm": True}),
        ("topk", {"decoder_norm": 0.5}),
        ("topk", {"directions": "cov"}),
        ("topk", {"b_dec": "zeros"}),
        ("topk", {"auxk": None}),
        ("jumprelu", {"bandwidth": 0.5}),
        ("relu", {"sparsity": 3.0}),
        ("matryoshka", {"group_shares": (0.5,)}),
    ],
)
def test_every_setting_changes_the_trained_sae(variant: str, changes: dict[str, Any]) -> None:
    usual = {"variant": variant, "rules": Rules(unit_norm=False)}
    plain, changed = (train(config(**usual | more))[0].W_dec for more in ({}, changes))
    assert not torch.equal(plain, changed)


@torch.no_grad()
def test_by_norm_is_kept_by_training_and_files(tmp_path: Path) -> None:
    rules = Rules(unit_norm=False)
    trained = train(config(by_norm=True, rules=rules, lr=2e-2), out=tmp_path)[0]
    plain = trained.inputs(ROWS) @ trained.W_enc.T + trained.b_enc
    by_norm = plain * trained.W_dec.norm(dim=1)

    def chosen(scores: Tensor) -> list[set[int]]:
        return [set(row.tolist()) for row in scores.topk(trained.k).indices]

    expected = chosen(by_norm)
    assert expected != chosen(plain)
    read = load_sae(tmp_path / "seed-0")
    for sae in (trained, read):
        assert [set(row.tolist()) for row in sae.encode(ROWS).indices] == expected
    torch.testing.assert_close(read(ROWS), trained(ROWS))


def test_precision_is_applied_to_steps() -> None:
    exact, rounded, weights = (
        train(config(precision=name))[0].W_dec for name in ("exact", "bf16", "bf16_weights")
    )
    for other in (rounded, weights):
        assert not torch.equal(exact, other)
        torch.testing.assert_close(exact, other, rtol=0, atol=0.2)
    assert not torch.equal(rounded, weights)


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_sides_do_not_change(tied: bool) -> None:
    start = train(config(lr=0.0, tied=tied, rules=Rules(unit_norm=False)))[0]
    assert torch.equal(start.W_enc, start.W_dec) == tied
    reference.normalise_rows(start.W_dec.data)
    for side, weight in (("encoder", "W_enc"), ("decoder", "W_dec")):
        trained = train(config(tied=tied, rules=Rules(frozen=side)))[0]
        other = "W_dec" if weight == "W_enc" else "W_enc"
        assert_same_bits(getattr(trained, weight), getattr(start, weight))
        assert not torch.equal(getattr(trained, other), getattr(start, other))


def test_a_tether_bounds_the_angle() -> None:
    start = train(config(lr=0.0))[0]
    held = train(config(lr=3e-2, rules=Rules(tether=0.8)))[0]
    free = train(config(lr=3e-2))[0]
    cosines = (start.W_dec * held.W_dec).sum(1)
    assert cosines.min() >= 0.8 - 1e-6
    assert (cosines < 0.8 + 1e-5).any()
    assert (start.W_dec * free.W_dec).sum(1).min() < 0.7
    torch.testing.assert_close(held.W_dec.norm(dim=1), torch.ones(96), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["fro", "fro_squared", "mean_abs"])
def test_penalties_shrink_their_side(norm: str) -> None:
    loose = Rules(unit_norm=False)
    weight = {"fro": 10.0, "fro_squared": 0.3, "mean_abs": 100.0}[norm]
    plain = train(config(rules=loose, lr=1e-2))[0]
    for side, name in (("encoder", "W_enc"), ("decoder", "W_dec")):
        rules = Rules(unit_norm=False, penalties=(Penalty(side, norm, weight),))
        shrunk = train(config(rules=rules, lr=1e-2))[0]
        assert getattr(shrunk, name).norm() < 0.8 * getattr(plain, name).norm()


def test_transcoders_learn_another_target() -> None:
    mix = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    pairs = TensorActivations(ROWS, 50 * ROWS @ mix)
    trained = train(config(tokens=40_000, k_start=None), rows=pairs)[0]
    assert (trained.d, trained.d_out, trained.transcodes) == (16, 24, True)
    target = 50 * ROWS @ mix
    left = ((trained(ROWS) - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert left < 0.5


def test_a_custom_loss_is_trained(tmp_path: Path) -> None:
    def squared(sae: SAE, x: Tensor, target: Tensor) -> Tensor:
        return (sae(x) - target).square().sum(1).mean()

    train(config(loss=squared, auxk=None, k_start=None), out=tmp_path / "own")
    train(config(auxk=None, k_start=None), out=tmp_path / "usual")
    own, usual = (metrics_of(tmp_path / name) for name in ("own", "usual"))
    assert {line["path"] for line in own} == {"autograd"}
    assert {line["path"] for line in usual} == {"fused"}
    facts = json.loads((tmp_path / "own/run.json").read_text())
    assert "squared" in facts["configs"][0]["loss"]
    for mine, theirs in zip(own, usual, strict=True):
        assert mine["fvu"] == pytest.approx(theirs["fvu"], rel=1e-3)


def test_a_custom_loss_has_the_scheduled_k(tmp_path: Path) -> None:
    def squared(sae: SAE, x: Tensor, target: Tensor) -> Tensor:
        return (sae(x) - target).square().sum(1).mean()

    trained = train(config(loss=squared, tokens=128 * 8), out=tmp_path, log_every=1)[0]
    lines = metrics_of(tmp_path)
    assert [line["k"] for line in lines] == [8, 6, 5, 4, 4, 4, 4, 4]
    assert [round(line["l0"]) for line in lines] == [line["k"] for line in lines]
    assert trained.k == 4


@pytest.mark.parametrize(
    ("value", "kind", "complaint"),
    [
        (lambda sae, x, target: 1.0, TypeError, r"loss must return a tensor \[\], got float"),
        (
            lambda sae, x, target: (sae(x) - target).square().mean(1),
            ValueError,
            r"step 0, .*: loss must return .* got shape \(128,\) with a gradient",
        ),
        (
            lambda sae, x, target: x.sum(),
            ValueError,
            r"loss must return a tensor \[\] that .*, got shape \(\) without a gradient",
        ),
    ],
)
def test_a_custom_loss_without_a_gradient_raises(
    value: Any, kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        train(config(loss=value))


def test_two_saes_of_one_name_raise() -> None:
    with pytest.raises(ValueError, match="names of SAEs must differ, got seed-0 twice"):
        train([config(), config(lr=1e-3)])
    with pytest.raises(ValueError, match="batch_size must be the same"):
        train([config(), config(batch_size=64, name="b")])


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        ({"configuration": []}, ValueError, "config must hold at least one TrainConfig"),
        ({"log_every": 0}, ValueError, "log_every must be at least 1"),
        ({"log_every": 2.5}, TypeError, "log_every must be an int"),
        ({"checkpoint_minutes": -1}, ValueError, "checkpoint_minutes must be at least 0"),
    ],
)
def test_bad_arguments_raise(
    arguments: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        train(arguments.pop("configuration", config()), **arguments)
