"""The GPU's fused update and training step against the same training in plain torch."""

import pytest
import torch
from helpers.planted_batches import batches, train_plainly
from helpers.strategies import Shape
from helpers.tolerance import assert_same_bits
from helpers.updates import Problem

from saefast import SAE, AuxK, FusedStep, reference
from saefast.kernels.round_rows import rounded_columns


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize(("d", "product"), [(13, "tfloat32"), (16, "float16"), (37, "float16")])
def test_several_steps_equal_the_reference(
    d: int, product: str, unit_norm: bool, extra: bool
) -> None:
    """One block of the width and several; 19 latents need more than one program."""
    shape = Shape(9, d, 19, 3)
    fused, plain = Problem(shape, 0, torch.float32), Problem(shape, 0, torch.float64)
    plain.batch = lambda number: tuple(
        t.double() if t.is_floating_point() else t for t in fused.batch(number)
    )
    plain.extra = lambda number: tuple(
        t.double() if t.is_floating_point() else t for t in fused.extra(number)
    )
    for mine, its in zip(plain.parameters, fused.parameters, strict=True):
        mine.copy_(its)
    packed = rounded_columns(fused.w_enc, product)
    for number in range(1, 4):
        asked = {"unit_norm": unit_norm, "extra": extra}
        expected = plain.plain(number, **asked)
        arrays = (packed.units, packed.norm, packed.lost)
        how = {"packed": arrays, "product": product, "multiplier": packed.multiplier}
        actual = fused.fused(number, **asked, **how)
        torch.testing.assert_close(actual[0].double(), expected[0], rtol=1e-5, atol=1e-5)
        assert_same_bits(actual[1], expected[1])
        for a, e in zip(
            fused.parameters + fused.moments, plain.parameters + plain.moments, strict=True
        ):
            torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=2e-6)
    fresh = rounded_columns(fused.w_enc, product)
    assert_same_bits(packed.units, fresh.units)
    torch.testing.assert_close(packed.norm, fresh.norm)
    torch.testing.assert_close(packed.lost, fresh.lost, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_training_equals_autograd_and_adam(precision: str) -> None:
    """The truth is trained in float64. Losses have an error of a few roundings of 2^-24."""
    data = batches(4, 12, 16, torch.float64)
    fused, plain = SAE(16, 40, k=4, seed=1), SAE(16, 40, k=4, seed=1, dtype=torch.float64)
    step = FusedStep(fused, lr=2e-3, precision=precision)
    losses = [step(x.float()).loss.item() for x in data]
    expected = train_plainly(plain, data, 2e-3, True, precision)
    assert losses == pytest.approx(expected, rel=2e-6)
    assert step.steps == 4
    for mine, torchs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), torchs, rtol=1e-5, atol=1e-5)


def test_runs_give_the_same_bits() -> None:
    results = []
    for _ in range(2):
        sae = SAE(16, 40, k=4, seed=1)
        step = FusedStep(sae, lr=2e-3, auxk=AuxK(3, dead_after=20))
        for x in batches(3, 12, 16, torch.float32):
            step(x)
        results.append([p.detach().clone() for p in sae.parameters()])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_the_learning_rate_may_change_between_steps() -> None:
    sae = SAE(8, 20, k=2, seed=0)
    step = FusedStep(sae, lr=0.0)
    before = sae.W_enc.detach().clone()
    step(batches(1, 9, 8, torch.float32)[0])
    assert_same_bits(sae.W_enc.detach(), before)
    step.lr = 1e-2
    assert step.lr == 1e-2
    step(batches(1, 9, 8, torch.float32)[0])
    assert (sae.W_enc != before).any()


def test_reference_rates_equal_adams() -> None:
    size, root = reference.adam_rates(
        torch.tensor(1e-3, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64), 0.9, 0.999
    ).tolist()
    assert size == pytest.approx(1e-3 / (1 - 0.9**5))
    assert root == pytest.approx((1 - 0.999**5) ** 0.5)


def test_weights_beyond_float16_count_as_lost() -> None:
    problem = Problem(Shape(9, 16, 19, 3), 0, torch.float32)
    packed = rounded_columns(problem.w_enc * 1e-3, "float16")
    arrays = (packed.units, packed.norm, packed.lost)
    problem.fused(1, packed=arrays, product="float16", multiplier=packed.multiplier)
    assert packed.units.abs().max() == torch.finfo(torch.float16).max
    missing = problem.w_enc.double() - packed.units.double() / packed.multiplier.double()
    assert (missing.norm(dim=1) <= packed.lost.double()).all()
