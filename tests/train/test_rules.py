"""Rules for weights: the fused step with every rule against autograd and torch's Adam."""

import math
from typing import Any

import pytest
import torch
from helpers.planted_batches import batches
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import SAE, AuxK, FusedStep, Penalty, Rules, reference
from saefast.ops import latent_pass
from saefast.train.optimizer import decay_of, square_of_weights, tethered

LR = 5e-3
RULES: dict[str, Rules] = {
    "plain": Rules(unit_norm=False),
    "unit norm": Rules(),
    "with its parallel part": Rules(remove_parallel=False),
    "clipped": Rules(clip=0.5),
    "clipped, loose": Rules(unit_norm=False, clip=0.5),
    "never clipped": Rules(clip=1e6),
    "fro": Rules(
        unit_norm=False, penalties=(Penalty("encoder", "fro", 3.0), Penalty("decoder", "fro", 2.0))
    ),
    "fro squared": Rules(
        unit_norm=False,
        penalties=(Penalty("encoder", "fro_squared", 0.1), Penalty("decoder", "fro", 2.0)),
    ),
    "absolute": Rules(unit_norm=False, penalties=(Penalty("decoder", "mean_abs", 30.0),)),
    "two on one side": Rules(
        penalties=(Penalty("encoder", "mean_abs", 20.0), Penalty("encoder", "fro_squared", 0.01))
    ),
    "absolute on the sphere": Rules(penalties=(Penalty("decoder", "mean_abs", 30.0),)),
    "penalties and clip": Rules(clip=0.3, penalties=(Penalty("encoder", "fro_squared", 0.1),)),
    "frozen encoder": Rules(frozen="encoder", clip=0.5),
    "frozen decoder": Rules(frozen="decoder", clip=0.5),
    "tether": Rules(tether=0.999),
    "betas": Rules(betas=(0.5, 0.9), eps=1e-4),
}


def train_plainly(sae: SAE, data: list[Tensor], rules: Rules) -> None:
    """Train with every rule written in plain torch."""
    if rules.unit_norm:
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    first = sae.W_dec.detach().clone()
    frozen = {"encoder": sae.W_enc, "decoder": sae.W_dec, None: None}[rules.frozen]
    if frozen is not None:
        frozen.requires_grad_(False)
    trained = [p for p in sae.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, LR, rules.betas, rules.eps)
    for x in data:
        values, indices = reference.topk_encode(x - sae.b_dec, sae.W_enc, sae.b_enc, k=sae.k)
        out = reference.sparse_decode(values.relu(), indices, sae.W_dec, sae.b_dec)
        loss = ((out - x) ** 2).sum(1).mean()
        for penalty in rules.penalties:
            weight = sae.W_enc if penalty.side == "encoder" else sae.W_dec
            norm = {
                "fro": weight.norm(),
                "fro_squared": weight.square().sum(),
                "mean_abs": weight.abs().mean(),
            }[penalty.norm]
            loss = loss + penalty.weight * norm
        optimiser.zero_grad()
        loss.backward()
        if rules.unit_norm and rules.remove_parallel and sae.W_dec.grad is not None:
            along = (sae.W_dec.grad * sae.W_dec.detach()).sum(1, keepdim=True)
            sae.W_dec.grad -= along * sae.W_dec.detach()
        if rules.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, rules.clip)
        optimiser.step()
        if rules.unit_norm and rules.frozen != "decoder":
            sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
        if rules.tether is not None:
            keep_near(sae.W_dec.data, first, rules.tether)


def keep_near(rows: Tensor, first: Tensor, cosine: float) -> None:
    """Apply the tether row by row, by the angle."""
    for row, anchor in zip(rows, first, strict=True):
        along = float(row @ anchor)
        if along < cosine:
            across = row - along * anchor
            angle = math.acos(cosine)
            row.copy_(math.cos(angle) * anchor + math.sin(angle) * across / across.norm())


@pytest.mark.parametrize("name", RULES)
def test_twenty_steps_under_a_rule_equal_autograd(name: str) -> None:
    rules = RULES[name]
    data = batches(20, 40, 16, torch.float64)
    fused, plain = (SAE(16, 96, k=5, seed=1, dtype=torch.float64) for _ in range(2))
    step = FusedStep(fused, lr=LR, rules=rules)
    for x in data:
        step(x)
    train_plainly(plain, data, rules)
    for key, parameter in plain.named_parameters():
        actual = dict(fused.named_parameters())[key]
        torch.testing.assert_close(actual, parameter, rtol=1e-6, atol=1e-8, check_stride=False)


def test_weights_of_zero_have_no_penalty_gradient() -> None:
    """The root of their sum of squares is not differentiable there."""
    sae = SAE(16, 96, k=5, seed=1)
    with torch.no_grad():
        sae.W_enc.mul_(0.01)
    rules = Rules(penalties=(Penalty("encoder", "fro", 3.0),))
    expected = 3.0 / sae.W_enc.detach().norm()
    decay = decay_of(rules, sae, lambda side: square_of_weights(sae, side))
    torch.testing.assert_close(decay.shrink_enc, expected.expand(96))
    with torch.no_grad():
        sae.W_enc.zero_()
    step = FusedStep(sae, lr=LR, rules=rules)
    for x in batches(3, 40, 16, torch.float32):
        step(x)
    assert sae.W_enc.isfinite().all()


def test_every_rule_changes_the_trained_sae() -> None:
    """The comparison above would be trivial if a rule changed nothing."""
    data = batches(20, 40, 16, torch.float64)
    results = {}
    for name, rules in RULES.items():
        sae = SAE(16, 96, k=5, seed=1, dtype=torch.float64)
        step = FusedStep(sae, lr=LR, rules=rules)
        for x in data:
            step(x)
        results[name] = torch.cat([p.detach().flatten() for p in sae.parameters()])
    assert torch.equal(results.pop("never clipped"), results["unit norm"])
    names = list(results)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert (results[a] - results[b]).abs().max() > 1e-4, (a, b)


def test_a_row_opposite_to_its_anchor_returns_to_it() -> None:
    anchor = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    rows = torch.tensor([[-0.6, -0.8], [0.0, 1.0]])
    turned = tethered(rows, anchor, 0.5)
    assert torch.equal(turned[0], anchor[0])
    torch.testing.assert_close(turned[1], torch.tensor([0.5, 0.75**0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name, rules in RULES.items() if rules.clip is not None])
def test_stored_gradients_give_the_bits_of_gradients_summed_again(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, states = batches(4, 40, 11, dtype), []
    for most_stored in (2**28, 0):
        monkeypatch.setattr(latent_pass, "MOST_STORED", most_stored)
        sae = SAE(11, 70, k=3, seed=1, dtype=dtype)
        step = FusedStep(sae, lr=LR, rules=RULES[name], auxk=AuxK(k=2, dead_after=50))
        fired = [step(x).fired for x in data]
        states.append(fired + [value.clone() for value in step.state_dict().values()])
    for stored, summed in zip(*states, strict=True):
        assert_same_bits(stored, summed)


@pytest.mark.parametrize(
    ("wrong", "kind", "complaint"),
    [
        ({"frozen": "both"}, ValueError, "frozen must be one of encoder, decoder"),
        ({"clip": -1.0}, ValueError, "clip must be at least 0"),
        ({"tether": 0.8, "unit_norm": False}, ValueError, "tether needs unit_norm=True"),
        ({"tether": 1.5}, ValueError, "tether must be at least -1 and below 1"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas must be at least 0 and below 1"),
        ({"eps": "small"}, TypeError, "eps must be a number, got str"),
    ],
)
def test_inconsistent_rules_raise(
    wrong: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        Rules(**wrong)


def test_penalties_need_a_known_side_and_norm() -> None:
    with pytest.raises(ValueError, match="side must be one of"):
        Penalty("both", "fro", 1.0)
    with pytest.raises(ValueError, match="norm must be one of"):
        Penalty("encoder", "l2", 1.0)
