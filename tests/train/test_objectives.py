"""Objectives of each variant: the fused gradients against autograd on dense products."""

import copy

import pytest
import torch
from helpers.planted_batches import batches
from helpers.small_objectives import MADE, Dense, make
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import SAE, AuxK, FusedStep, Rules, topk_encode
from saefast.sae import VARIANTS
from saefast.train import packed_encoder
from saefast.train.objectives import (
    SPARSITY,
    Current,
    Custom,
    FusedPath,
    JumpReLU,
    TopK,
    usual_objective,
)
from saefast.train.objectives.batchtopk import group_ends, largest_of_batch
from saefast.train.objectives.dense import scores_of
from saefast.train.packed_encoder import PackedEncoder


def test_the_threshold_of_batchtopk_separates_kept_values() -> None:
    """After many batches the SAE keeps k latents per row on average without access to the batch."""
    sae, objective = make("batchtopk", dtype=torch.float32)
    step = FusedStep(sae, lr=0.0, objective=objective)
    for _ in range(3):
        for x in DATA:
            step(x)
    code = sae.encode(torch.cat(DATA))
    assert (code.values > 0).sum(1).float().mean() == pytest.approx(5, rel=0.05)
    before = float(sae.threshold)
    with torch.no_grad():  # it is updated by training
        sae.W_enc *= 2
        sae.b_enc *= 2
    for _ in range(3):
        for x in DATA:
            step(x)
    assert float(sae.threshold) == pytest.approx(2 * before, rel=0.01)


def test_the_threshold_of_batchtopk_is_a_running_mean() -> None:
    """At first over a tenth of the steps so far, finally over the last thousand."""
    sae, objective = make("batchtopk", dtype=torch.float32)
    step = FusedStep(sae, lr=0.0, objective=objective)
    small, large = DATA[0], 4 * DATA[1]

    def smallest(x: Tensor) -> float:
        with torch.no_grad():
            kept = largest_of_batch(scores_of(sae, x), 5)
            return float(kept[kept > 0].min())

    low, high = smallest(small), smallest(large)
    assert high > 2 * low
    for x in (small, large):
        step(x)
        assert float(sae.threshold) == pytest.approx(smallest(x), rel=1e-4)
    for x in (small, large) * 100:
        step(x)
    assert float(sae.threshold) == pytest.approx((low + high) / 2, rel=0.05)
    step.load_state_dict(
        {**step.state_dict(), "objective.thresholds_seen": torch.tensor(1e6).double()}
    )
    before = float(sae.threshold)
    step(large)
    assert float(sae.threshold) == pytest.approx(before + 0.001 * (high - before), rel=1e-5)


def test_guesses_of_batchtopk_need_one_encode_per_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for name in ("threshold_packed", "encode_packed"):
        function = getattr(packed_encoder, name)
        monkeypatch.setattr(
            packed_encoder,
            name,
            lambda *a, f=function, name=name, **settings: (calls.append(name), f(*a, **settings))[
                1
            ],
        )
    sae, objective = make("batchtopk", dtype=torch.float32)
    step = FusedStep(sae, lr=1e-3, objective=objective)
    for number, x in enumerate(DATA):
        step(x)
        if number == 0:
            calls.clear()
    assert calls == ["threshold_packed"] * (len(DATA) - 1)


DATA = batches(30, 100, 16, torch.float32)


def test_a_row_is_encoded_independently_of_others() -> None:
    """The code of a row in inference does not depend on the rows beside it."""
    for name in ("batchtopk", "matryoshka", "relu", "jumprelu"):
        sae, _ = make(name, dtype=torch.float32)
        together = sae.encode(DATA[0]).to_dense(96)
        alone = torch.cat([sae.encode(row[None]).to_dense(96) for row in DATA[0]])
        assert_same_bits(together, alone)


def test_gates_select_and_magnitudes_give_values() -> None:
    sae = SAE(6, 10, variant="gated", k=2, seed=0)
    with torch.no_grad():
        sae.r_mag.copy_(torch.linspace(-1, 1, 10))
        sae.b_mag.copy_(torch.linspace(-0.5, 0.5, 10))
        sae.b_enc.copy_(torch.linspace(0.3, -0.3, 10))
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    product = x @ sae.W_enc.T
    expected = torch.where(
        product + sae.b_enc > 0, (product * sae.r_mag.exp() + sae.b_mag).relu(), 0.0
    )
    torch.testing.assert_close(sae.encode(x).to_dense(10), expected, rtol=1e-5, atol=1e-6)
    objective = usual_objective(sae)
    loss = objective.loss(sae, x, x, Current(2))
    torch.testing.assert_close(loss.error, x - (expected @ sae.W_dec + sae.b_dec))
    step = FusedStep(sae, lr=1e-2)
    losses = [float(step(x).loss) for _ in range(100)]
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_of_gates_equals_the_papers() -> None:
    """Its penalty and its second reconstruction depend on the gates only, not on magnitudes."""
    sae = SAE(6, 10, variant="gated", k=2, seed=0, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
        for parameter in (sae.W_enc, sae.b_enc, sae.b_dec):
            parameter.mul_(2).round_()  # so that gates of zero occur
    x, target = (torch.randn(20, 6, generator=random, dtype=torch.float64) for _ in range(2))
    x.round_()
    gates = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    assert (gates == 0).any()
    product = (x - sae.b_dec) @ sae.W_enc.T
    acts = (product * sae.r_mag.exp() + sae.b_mag).relu() * (gates > 0)
    held = gates.relu() @ sae.W_dec.detach() + sae.b_dec.detach()
    expected = (
        (acts @ sae.W_dec + sae.b_dec - target).square().sum(1)
        + 0.7 * 0.5 * (gates.relu() * sae.W_dec.norm(dim=1)).sum(1)
        + (held - target).square().sum(1)
    ).mean()
    loss = usual_objective(sae, sparsity=0.7).loss(sae, x, target, Current(2, pressure=0.5))
    torch.testing.assert_close(loss.value, expected)
    parameters = list(sae.parameters())
    gradients = (torch.autograd.grad(value, parameters) for value in (loss.value, expected))
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated"])
def test_sparsity_is_the_weight_of_the_penalty(name: str) -> None:
    sae = SAE(16, 96, variant=name, k=5, seed=1)
    x = DATA[0]

    def value(sparsity: float | None, pressure: float = 1.0) -> float:
        objective = usual_objective(sae, sparsity=sparsity)
        return objective.loss(sae, x, x, Current(5, pressure)).value.item()

    penalty = value(1.0) - value(0.0)
    assert penalty > 0.1
    assert value(2.0) - value(0.0) == pytest.approx(2 * penalty, rel=1e-3)
    assert value(2.0, 0.5) == pytest.approx(value(1.0), rel=1e-4)
    assert value(None) == pytest.approx(value(SPARSITY[name]))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns(name: str) -> None:
    sae = SAE(16, 96, variant=name, k=4, seed=0)
    step = FusedStep(sae, lr=5e-3, objective=usual_objective(sae, sparsity=0.1))
    losses = [float(step(x).squares) for x in DATA * 3]
    assert losses[-1] < 0.6 * losses[0]
    assert usual_objective(sae).fused in FusedPath


@pytest.mark.parametrize("fused", [True, False])
def test_thresholds_of_jumprelu_end_at_zero(fused: bool) -> None:
    """Negative thresholds would allow negative activations."""
    sae = SAE(16, 96, variant="jumprelu", k=90, seed=0)
    objective = JumpReLU(1000.0, 0.5)  # k increases
    step = FusedStep(sae, lr=1e-2, objective=objective if fused else Dense(objective))
    for x in DATA:
        step._dense.fill_(not fused)
        step(x)
        assert sae.jump_threshold.min() >= 0
    assert (sae.jump_threshold == 0).sum() > 10


def test_the_last_group_has_all_latents() -> None:
    assert group_ends(100, (0.25, 0.25)).tolist() == [25, 50, 100]
    assert group_ends(100, (0.5, 0.5)).tolist() == [50, 100]
    assert group_ends(3, (0.001, 0.9, 0.9)).tolist() == [1, 3]
    assert group_ends(7, ()).tolist() == [7]


def test_the_encoder_is_packed_again_after_autograd() -> None:
    sae, objective = make("relu", dtype=torch.float32)
    encoder = PackedEncoder(sae, "exact")
    zero = sae.b_enc.new_zeros(())
    encoder.above(DATA[0], zero, 96)
    with torch.no_grad():
        sae.W_enc.mul_(2.0)
    again = encoder.above(DATA[0], zero, 96)
    fresh = PackedEncoder(sae, "exact").above(DATA[0], zero, 96)
    assert_same_bits(again.values, fresh.values)
    assert objective.fused is FusedPath.WHEN_SPARSE


def test_dead_latents_train_their_encoder() -> None:
    """There is a trainer whose AuxK does not reach the encoder."""
    sae = SAE(16, 96, k=4, seed=0)
    with torch.no_grad():
        sae.b_enc[40:] = -100.0  # dead without AuxK
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    step = FusedStep(sae, lr=1e-3, auxk=AuxK(k=8, dead_after=150, signed=True, capacity=56))
    seen = [step(x) for x in DATA[:1]]
    assert torch.equal(sae.W_enc[40:], before["W_enc"][40:])
    seen += [step(x) for x in DATA[1:6]]
    assert float(seen[-1].auxk) > 0
    assert (seen[-1].fired[40:] == 0).all()
    for name in ("W_enc", "b_enc", "W_dec"):
        moved = (getattr(sae, name)[40:] - before[name][40:]).abs()
        assert (moved > 0).double().mean() > 0.9, name


@pytest.mark.parametrize("auxk", [None, AuxK(k=4, dead_after=10_000)])
def test_values_cut_by_relu_get_no_gradient(auxk: AuxK | None) -> None:
    """There is a trainer that passes the gradient where the selected value is negative."""
    sae = SAE(16, 96, k=20, seed=0)
    with torch.no_grad():
        sae.b_enc.fill_(-2.0)
        sae.b_enc[:3] = 5.0  # so that a row has few positive values; the rest is selected by size
    x = DATA[0]
    chosen = topk_encode(x, sae.W_enc, sae.b_enc, k=20)
    cut = torch.ones(96, dtype=torch.bool)
    cut[chosen.indices[chosen.values > 0]] = False
    named = torch.zeros(96, dtype=torch.bool)
    named[chosen.indices.flatten()] = True
    assert (cut & named).sum() > 5
    before = sae.W_enc.detach().clone(), sae.b_enc.detach().clone(), sae.W_dec.detach().clone()
    FusedStep(sae, lr=1e-2, rules=Rules(unit_norm=False), auxk=auxk)(x)
    for now, then in zip((sae.W_enc, sae.b_enc, sae.W_dec), before, strict=True):
        assert_same_bits(now.detach()[cut], then[cut])
        assert not torch.equal(now.detach()[~cut], then[~cut])


@pytest.mark.parametrize("name", ["topk", "abstopk", "batchtopk", "matryoshka"])
def test_gradients_are_of_rounded_weights(name: str) -> None:
    """Gradients of rounded weights are applied to float32 ones: see Adam's first moments."""
    sae, objective = make(name, dtype=torch.float32)
    with torch.no_grad():
        sae.b_dec.zero_()
    # Inputs are exact in bfloat16, so that only weights are rounded.
    x = (4 * DATA[0]).round() / 4
    rounded = copy.deepcopy(sae)
    for weight in (rounded.W_enc, rounded.W_dec):
        weight.data = weight.data.bfloat16().float()
    rules = Rules(unit_norm=False, betas=(0.0, 0.999))
    step = FusedStep(sae, lr=0.0, objective=objective, precision="bf16_weights", rules=rules)
    result = step(x)
    loss = MADE[name][1](rounded).loss(rounded, x, x, Current(5))
    assert float(result.squares) == pytest.approx(float(loss.squares), rel=1e-6)
    expected = torch.autograd.grad(loss.value, [rounded.W_enc, rounded.b_enc, rounded.W_dec])
    for key, gradient in zip(("W_enc", "b_enc", "W_dec"), expected, strict=True):
        torch.testing.assert_close(step.adam.moments[key][0], gradient, rtol=1e-4, atol=1e-4)
    exact = FusedStep(make(name, dtype=torch.float32)[0], lr=0.0)
    assert float(exact(x).squares) != pytest.approx(float(loss.squares), rel=1e-5)


def test_rounded_weights_keep_the_projection() -> None:
    """With rows of norm one the gradient has no component along them, as with float32 weights."""
    sae, _ = make("topk", dtype=torch.float32)
    step = FusedStep(sae, lr=0.0, precision="bf16_weights", rules=Rules(betas=(0.0, 0.999)))
    step(DATA[0])
    first = step.adam.moments["W_dec"][0]
    along = (first * sae.W_dec).sum(1).abs()
    assert along.max() <= 1e-5 * first.norm(dim=1).max()


def test_rounded_weights_need_sparse_codes() -> None:
    with pytest.raises(
        ValueError, match=r"needs variant topk or abstopk or .* loss, got relu with ReLU"
    ):
        FusedStep(make("relu", dtype=torch.float32)[0], precision="bf16_weights")


def test_a_custom_loss_counts_negative_activations() -> None:
    """A latent of abstopk that fires downwards is not dead."""
    sae = SAE(16, 40, k=4, variant="abstopk", seed=0)
    (x,) = batches(1, 50, 16, torch.float32)
    now = Current(sae.k)
    usual = TopK(absolute=True).loss(sae, x, x, now)
    own = Custom(lambda sae, x, target: (sae(x) - target).square().sum()).loss(sae, x, x, now)
    assert (sae.encode(x).values < 0).any()
    assert torch.equal(own.fired, usual.fired)
