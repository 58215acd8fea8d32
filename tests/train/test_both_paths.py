"""The fused path of a step gives the results of autograd, for every objective."""

import copy
from typing import Any

import pytest
import torch
from helpers.planted_batches import batches
from helpers.small_objectives import MADE, Dense, make
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import SAE, AuxK, FusedStep, Penalty, Rules
from saefast.train.objectives import (
    Current,
    Custom,
    JumpReLU,
    TopK,
)


def both(name: str, steps: int = 12, d_out: int | None = None, **settings: Any) -> list[Any]:
    """Return the same training on the fused path and by autograd, on rows of two scales."""
    data = batches(steps, 40, 16, torch.float64)
    data = [x if number % 2 else x / 10 for number, x in enumerate(data)]
    targets = [x @ MIX[:, :d_out] if d_out else None for x in data]
    results = []
    for dense in (False, True):
        sae, objective = make(name, d_out)
        step = FusedStep(
            sae, lr=3e-3, objective=Dense(objective) if dense else objective, **settings
        )
        step._dense.fill_(dense)
        step.now = Current(5, pressure=0.7)
        seen = []
        for x, target in zip(data, targets, strict=True):
            result = step(x, target)
            assert result.path == ("autograd" if dense else "fused")
            step._dense.fill_(dense)
            seen.append((result.loss, result.squares, result.fired, result.auxk))
        results.append((step, seen))
    return results


DATA = batches(30, 100, 16, torch.float32)
MIX = torch.randn(16, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_the_fused_path_equals_autograd(name: str, unit_norm: bool) -> None:
    penalties = Penalty("encoder", "fro", 0.01), Penalty("decoder", "fro_squared", 0.01)
    rules = Rules(unit_norm=unit_norm, clip=2.0, penalties=penalties)
    (fused, seen), (dense, expected) = both(name, rules=rules)
    for (loss, squares, fired, _), (loss_, squares_, fired_, _) in zip(seen, expected, strict=True):
        assert float(loss) == pytest.approx(float(loss_), rel=1e-8)
        assert float(squares) == pytest.approx(float(squares_), rel=1e-8)
        assert_same_bits(fired, fired_)
    assert (seen[-1][2] > 0).sum() > 5
    for key, parameter in dense.sae.named_parameters():
        actual = dict(fused.sae.named_parameters())[key]
        torch.testing.assert_close(actual, parameter, rtol=1e-6, atol=1e-9, check_stride=False)
        assert not torch.equal(actual, dict(make(name)[0].named_parameters())[key])


@pytest.mark.parametrize("name", ["topk", "abstopk", "matryoshka"])
def test_dead_latents_learn_on_both_paths(name: str) -> None:
    auxk = AuxK(k=4, dead_after=100)
    (fused, seen), (dense, expected) = both(name, rules=Rules(), auxk=auxk)
    assert any(float(auxk_) > 0 for *_, auxk_ in seen)
    for (*_, mine), (*_, theirs) in zip(seen, expected, strict=True):
        assert float(mine) == pytest.approx(float(theirs), rel=1e-7)
    for key, parameter in dense.sae.named_parameters():
        torch.testing.assert_close(
            dict(fused.sae.named_parameters())[key], parameter, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("name", ["topk", "abstopk", "matryoshka", "relu"])
@pytest.mark.parametrize("d_out", [9, 16, 24])
def test_transcoders_train_on_both_paths(name: str, d_out: int) -> None:
    (fused, _), (dense, _) = both(name, d_out=d_out)
    for key, parameter in dense.sae.named_parameters():
        torch.testing.assert_close(
            dict(fused.sae.named_parameters())[key], parameter, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_side_is_frozen_on_both_paths(side: str) -> None:
    (fused, _), (dense, _) = both("topk", rules=Rules(frozen=side, clip=2.0))
    for key, parameter in dense.sae.named_parameters():
        torch.testing.assert_close(
            dict(fused.sae.named_parameters())[key], parameter, rtol=1e-6, atol=1e-8
        )
    start = make("topk")[0]
    start.W_dec.data /= start.W_dec.data.norm(dim=1, keepdim=True)
    key, other = ("W_enc", "W_dec") if side == "encoder" else ("W_dec", "W_enc")
    torch.testing.assert_close(getattr(dense.sae, key), getattr(start, key), rtol=0, atol=1e-15)
    assert not torch.equal(getattr(dense.sae, other), getattr(start, other))


@pytest.mark.parametrize("name", ["topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu"])
def test_ties_are_decided_alike_on_both_paths(name: str) -> None:
    """Integers: equal scores, scores at thresholds, and half a bandwidth away from them."""
    random = torch.Generator().manual_seed(0)
    sae = SAE(6, 30, variant=MADE[name][0], k=5, dtype=torch.float64)
    with torch.no_grad():
        for parameter in sae.parameters():
            whole = torch.randint(-2, 3, parameter.shape, generator=random)
            parameter.copy_(whole)
        if name == "jumprelu":
            sae.jump_threshold.abs_()
    x = torch.randint(-2, 3, (40, 6), generator=random).double()
    results = []
    for dense in (False, True):
        mine = copy.deepcopy(sae)
        objective = JumpReLU(2.0, 2.0) if name == "jumprelu" else MADE[name][1](mine)
        rules = Rules(unit_norm=False, betas=(0.0, 0.999))
        step = FusedStep(
            mine, lr=0.0, objective=Dense(objective) if dense else objective, rules=rules
        )
        step._dense.fill_(dense)
        result = step(x)
        assert result.path == ("autograd" if dense else "fused")
        gradients = [first for first, _ in step.adam.moments.values()]
        results.append([result.loss, result.fired, *gradients])
    for actual, expected in zip(*results, strict=True):
        assert expected.any()
        torch.testing.assert_close(actual, expected, check_stride=False)


def test_a_custom_loss_trains_the_same_model() -> None:
    def loss(sae: SAE, x: Tensor, target: Tensor) -> Tensor:
        return (sae(x) - target).square().sum(1).mean()

    results = []
    for objective in (TopK(), Custom(loss)):
        sae, _ = make("topk")
        step = FusedStep(sae, lr=3e-3, objective=objective)
        seen = [step(x) for x in batches(12, 40, 16, torch.float64)]
        results.append((sae, seen))
    (fused, mine), (own, theirs) = results
    assert [r.path for r in theirs] == ["autograd"] * 12
    for a, b in zip(mine, theirs, strict=True):
        assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-8)
        assert float(a.squares) == pytest.approx(float(b.squares), rel=1e-8)
        assert_same_bits(a.fired, b.fired)
    for actual, expected in zip(fused.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_dense_codes_take_the_dense_path_and_sparse_ones_leave_it(name: str) -> None:
    sae, objective = make(name, dtype=torch.float32)
    step = FusedStep(sae, lr=1e-3, objective=objective)
    x = batches(1, 64, 16, torch.float32)[0]
    with torch.no_grad():
        sae.b_enc.fill_(2.0)
        assert [step(x).path for _ in range(3)] == ["autograd"] * 3
        sae.b_enc.fill_(-3.0)
        assert [step(x).path for _ in range(3)] == ["autograd", "fused", "fused"]
        sae.b_enc.fill_(2.0)
        assert [step(x).path for _ in range(2)] == ["fused", "autograd"]


@pytest.mark.parametrize("name", [*MADE, "tethered"])
def test_a_step_continues_from_the_state_of_another(name: str) -> None:
    rules = Rules(tether=0.99) if name == "tethered" else Rules(clip=1.0)
    auxk = AuxK(k=4, dead_after=200)
    states = []
    for seed in (1, 2):
        sae, objective = make("topk" if name == "tethered" else name, dtype=torch.float32)
        with torch.no_grad():
            sae.W_dec.mul_(seed).add_(seed - 1)
        step = FusedStep(sae, lr=1e-2, objective=objective, rules=rules, auxk=auxk)
        if states:
            step.load_state_dict(states[0])
        for x in DATA[10:] if states else DATA:
            if len(states) == 0 and x is DATA[10]:
                states.append({key: value.clone() for key, value in step.state_dict().items()})
            step(x)
        states.append(step.state_dict())
    assert states[1].keys() == states[2].keys()
    for key, value in states[1].items():
        assert_same_bits(states[2][key], value)
    with pytest.raises(ValueError, match=r"state_dict must hold W_dec.*, got W_dec$"):
        step.load_state_dict({"W_dec": sae.W_dec})
    with pytest.raises(ValueError, match="idle must have shape"):
        step.load_state_dict({**step.state_dict(), "idle": step.idle[1:]})
    with pytest.raises(TypeError, match="idle must be int64"):
        step.load_state_dict({**step.state_dict(), "idle": step.idle.int()})


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("name", MADE)
def test_the_fused_path_gives_the_same_bits_for_any_number_of_threads(name: str) -> None:
    data = batches(5, 200, 16, torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sae, objective = make(name, dtype=torch.float32)
        step = FusedStep(sae, lr=1e-3, objective=objective, rules=Rules(clip=1.0))
        for x in data:
            step._dense.fill_(False)
            step(x)
        results.append(step.state_dict())
    for result in results[1:]:
        for key, value in results[0].items():
            assert_same_bits(result[key], value)
