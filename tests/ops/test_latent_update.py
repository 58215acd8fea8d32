"""The fused update against plain Adam on plain gradients, and values that it must not change."""

import pytest
import torch
from helpers.strategies import Shape, native_products, normal, seeds, shapes
from helpers.tolerance import assert_same_bits
from helpers.updates import ADAM, LR, Problem, rates, update_of
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import reference
from saefast.ops.cpu import native
from saefast.ops.encode_cpu import PackedWeight, Screen
from saefast.ops.latent_update import gradient_squares, latent_update


@settings(max_examples=30)
@given(shape=shapes(), seed=seeds)
@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_several_steps_equal_the_reference(
    level: str, shape: Shape, seed: int, unit_norm: bool, extra: bool
) -> None:
    fused, plain = (Problem(shape, seed, torch.float64) for _ in range(2))
    for number in range(1, 5):
        actual = fused.fused(number, unit_norm=unit_norm, extra=extra)
        expected = plain.plain(number, unit_norm=unit_norm, extra=extra)
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-9, atol=1e-9)
        assert_same_bits(actual[1], expected[1])
        for a, e in zip(
            fused.parameters + fused.moments, plain.parameters + plain.moments, strict=True
        ):
            torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-9)


def test_the_reference_equals_torchs_adam() -> None:
    problem = Problem(Shape(20, 9, 30, 4), 0, torch.float64)
    weights = [torch.nn.Parameter(p.clone()) for p in problem.parameters]
    optimiser = torch.optim.Adam(weights, LR, (ADAM["beta1"], ADAM["beta2"]), ADAM["eps"])
    for number in range(1, 30):
        indices, values, grads, residual, inputs = problem.batch(number)
        active, m = values != 0, 30
        weights[0].grad = reference.latent_sum(grads * active, indices, inputs, m)
        ones = torch.ones(20, 1, dtype=torch.float64)
        weights[1].grad = reference.latent_sum(grads * active, indices, ones, m).squeeze(1)
        weights[2].grad = reference.latent_sum(values * active, indices, residual, m)
        optimiser.step()
        problem.plain(number, unit_norm=False)
        for mine, torchs in zip(problem.parameters, weights, strict=True):
            torch.testing.assert_close(mine, torchs.detach(), rtol=1e-11, atol=1e-12)


def test_idle_latents_move_only_by_momentum(level: str) -> None:
    """A latent that fires once is still updated by Adam afterwards."""
    shape = Shape(1, 12, 5, 1)
    fused, plain = (Problem(shape, 0, torch.float32) for _ in range(2))
    for problem in (fused, plain):
        step = problem.fused if problem is fused else problem.plain
        for number in range(1, 40):
            problem.batch = lambda number: (
                torch.tensor([[3 if number == 1 else 0]]),
                torch.ones(1, 1),
                torch.ones(1, 1),
                torch.ones(1, 12),
                torch.ones(1, 12),
            )
            before = problem.w_enc[3].clone()
            step(number, unit_norm=False)
            assert (problem.w_enc[3] != before).all()
            assert (problem.w_enc[1] == Problem(shape, 0, torch.float32).w_enc[1]).all()
    torch.testing.assert_close(fused.w_enc, plain.w_enc, rtol=1e-5, atol=1e-6)


@settings(max_examples=20)
@given(shape=shapes(), seed=seeds)
def test_norms_stay_one_and_a_zero_rate_changes_nothing(
    level: str, shape: Shape, seed: int
) -> None:
    problem = Problem(shape, seed, torch.float32)
    for number in range(1, 4):
        problem.fused(number)
        norms = problem.w_dec.double().norm(dim=1)
        assert ((norms - 1).abs() <= 4 * torch.finfo(torch.float32).eps).all()
    before = [p.clone() for p in problem.parameters[:2]]
    problem.fused(4, lr=0.0)
    for now, then in zip(problem.parameters[:2], before, strict=True):
        assert_same_bits(now, then)


@settings(max_examples=20)
@given(shape=shapes(), seed=seeds)
def test_the_packed_encoder_is_refreshed(level: str, shape: Shape, seed: int) -> None:
    for product in native_products():
        problem = Problem(shape, seed, torch.float32)
        packed = PackedWeight.of(problem.w_enc, Screen("native", product))
        problem.fused(1, packed=(packed.units, packed.norm, packed.lost), product=product)
        fresh = PackedWeight.of(problem.w_enc, Screen("native", product))
        assert_same_bits(packed.units, fresh.units)
        assert_same_bits(packed.norm, fresh.norm)
        assert_same_bits(packed.lost, fresh.lost)


@pytest.mark.usefixtures("torch_threads")
def test_threads_and_instruction_sets_give_the_same_bits() -> None:
    shape = Shape(120, 77, 333, 9)
    before = native.level()
    results = []
    for name in native.usable_levels():
        native.use_level(name)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            problem = Problem(shape, 0, torch.float32)
            outputs = [problem.fused(number) for number in (1, 2)]
            results.append(problem.parameters + problem.moments + [t for o in outputs for t in o])
    native.use_level(before)
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_same_bits(actual, expected)


def test_fired_counts_values_of_both_signs_that_are_not_zero() -> None:
    problem = Problem(Shape(50, 4, 20, 3), 0, torch.float32)
    indices, values, *_ = problem.batch(1)
    _, fired = problem.fused(1)
    expected = torch.zeros(20, dtype=torch.int64)
    expected.index_add_(0, indices[values != 0], torch.ones_like(indices[values != 0]))
    assert_same_bits(fired, expected)
    assert (values < 0).any()
    assert (values == 0).any()


def test_a_diverging_update_raises() -> None:
    problem = Problem(Shape(20, 6, 8, 3), 0, torch.float32)
    packed = PackedWeight.of(problem.w_enc, Screen("native", "float32"))
    arrays = (packed.units, packed.norm, packed.lost)
    with pytest.raises(ValueError, match="the learning rate may be too high"):
        problem.fused(1, packed=arrays, lr=float("inf"))


@st.composite
def switches(draw: st.DrawFn, m: int, seed: int) -> dict[str, object]:
    """Draw any combination of options of an update."""
    ends = sorted(draw(st.lists(st.integers(0, m), max_size=3)))
    given = {
        "shrink_enc": normal((m,), seed + 7, torch.float64),
        "shrink_dec": normal((m,), seed + 8, torch.float64),
        "sign": normal((2,), seed + 9, torch.float64),
        "factor": normal((), seed + 10, torch.float64).abs(),
        "group_ends": torch.tensor([*ends, m]),
    }
    chosen: dict[str, object] = {name: given[name] for name in given if draw(st.booleans())}
    for name in ("unit_norm", "remove_parallel", "update_encoder", "update_decoder"):
        chosen[name] = draw(st.booleans())
    return chosen


@settings(max_examples=60)
@given(shape=shapes(), seed=seeds, data=st.data(), d_out=st.integers(1, 70), extra=st.booleans())
def test_every_switch_equals_the_reference(
    level: str, shape: Shape, seed: int, data: st.DataObject, d_out: int, extra: bool
) -> None:
    m = shape.m
    asked = data.draw(switches(m, seed))
    groups = len(asked["group_ends"]) if "group_ends" in asked else None
    results = []
    for measure, apply in (
        (lambda update: gradient_squares(*update), lambda update: latent_update(*update)),
        (reference.gradient_squares, reference.latent_update),
    ):
        problem = Problem(shape, seed, torch.float64)
        w_dec = normal((m, d_out), seed + 2, torch.float64)
        problem.parameters[2] = w_dec / w_dec.norm(dim=1, keepdim=True)
        problem.moments[4:] = [torch.zeros_like(w_dec) for _ in range(2)]
        more = problem.extra(1) if extra else None
        if more:
            more = (*more[:3], normal((len(more[0]), d_out), seed, torch.float64))
        update = update_of(
            problem.gradients_of(1, d_out, groups, asked.get("group_ends")),
            problem.parameters,
            problem.moments,
            extra=more,
            rates=rates(1),
            **ADAM,
            **asked,
        )
        results.append([*measure(update), *apply(update), *problem.parameters, *problem.moments])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_groups_must_cover_the_latents() -> None:
    problem = Problem(Shape(4, 3, 6, 2), 0, torch.float32)
    for ends, complaint in (([2, 5], "end with the number of latents, 6"), ([4, 2, 6], "ascend")):
        update = problem.update(1, unit_norm=False, group_ends=torch.tensor(ends))
        residual = update.residual.repeat(len(ends), 1, 1)
        with pytest.raises(ValueError, match=complaint):
            latent_update(*update._replace(residual=residual))


def test_squares_match_autograd() -> None:
    """Without switches: the norm of the plain gradient of half the squared error."""
    n, d, m, k = Shape(30, 7, 20, 4)
    problem = Problem(Shape(n, d, m, k), 3, torch.float64)
    w_enc, b_enc, w_dec = (torch.nn.Parameter(p.clone()) for p in problem.parameters)
    inputs, target = normal((n, d), 1, torch.float64), normal((n, d), 2, torch.float64)
    code = reference.topk_encode(inputs, w_enc, b_enc, k=k)
    error = reference.sparse_decode(code.values.relu(), code.indices, w_dec) - target
    (error.square().sum() / 2).backward()
    residual = error.detach()
    grads = torch.where(
        code.values > 0, reference.gather_dots(residual, w_dec.detach(), code.indices), 0.0
    )
    update = problem.update(1, unit_norm=False)._replace(
        indices=code.indices,
        values=code.values.detach(),
        value_grads=grads,
        residual=residual,
        inputs=inputs,
    )
    _, squares = gradient_squares(*update)
    expected = sum(p.grad.reshape(m, -1).square().sum(1) for p in (w_enc, b_enc, w_dec))
    torch.testing.assert_close(squares, expected, rtol=1e-10, atol=1e-12)
