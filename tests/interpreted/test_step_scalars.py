"""The kernels of a step other than its products, against their definitions in torch."""

import math

import pytest
import torch
from helpers.strategies import normal, seeds
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import Rules, reference
from saefast.kernels.update import step_scalars
from saefast.sae import SAE
from saefast.train.optimizer import Adam, Vector, clip_factor

sizes = st.sampled_from([1, 15, 16, 17, 40])


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.5, 0.0)])
@pytest.mark.parametrize("before", [0, 1, 9, 1000, 10**6, 10**9])
def test_rates_equal_adams(betas: tuple[float, float], before: int) -> None:
    lr, steps = (torch.tensor(value, dtype=torch.float64) for value in (3e-4, before))
    logarithms = (math.log(beta) if beta else -math.inf for beta in betas)
    rates = step_scalars.next_rates(lr, steps, *logarithms)
    assert steps.item() == before + 1
    torch.testing.assert_close(rates, reference.adam_rates(lr, steps, *betas), rtol=1e-12, atol=0)


def vector(size: int, seed: int, *, with_minus: bool) -> Vector:
    """Draw a vector in the middle of a training."""
    parameter, first, second, gradient, minus = (
        normal((size,), seed + i, torch.float32) for i in range(5)
    )
    return Vector(parameter, first, second.abs(), gradient, minus if with_minus else None)


@settings(max_examples=25)
@given(
    latents=sizes,
    size=sizes,
    other_size=st.one_of(st.none(), sizes),
    with_minus=st.booleans(),
    clip=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    seed=seeds,
)
def test_a_gradient_is_clipped_by_its_factor(
    latents: int, size: int, other_size: int | None, with_minus: bool, clip: float, seed: int
) -> None:
    row_squares = normal((latents,), seed, torch.float64).square()
    vectors = [vector(size, seed + 1, with_minus=with_minus)]
    if other_size is not None:
        vectors.append(vector(other_size, seed + 6, with_minus=False))
    expected = clip_factor(clip, [v.whole_gradient for v in vectors], row_squares)
    actual = step_scalars.clip_factor(clip, row_squares, *vectors)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    assert (actual == 1) == (expected == 1)


def test_a_nan_gradient_gives_a_nan_factor() -> None:
    row_squares = torch.tensor([1.0, torch.nan], dtype=torch.float64)
    assert step_scalars.clip_factor(1.0, row_squares, vector(3, 0, with_minus=True)).isnan()


@settings(max_examples=25)
@given(
    size=sizes,
    other_size=st.one_of(st.none(), sizes),
    latents=sizes,
    with_minus=st.booleans(),
    clipped=st.booleans(),
    seed=seeds,
)
def test_vectors_move_as_in_the_reference(
    size: int, other_size: int | None, latents: int, with_minus: bool, clipped: bool, seed: int
) -> None:
    factor = torch.tensor(0.3, dtype=torch.float64) if clipped else None
    rates = torch.tensor([1e-2, 0.7], dtype=torch.float64)
    fired = normal((latents,), seed, torch.float32).relu().ceil().long()
    both = []
    for _ in range(2):
        vectors = [vector(size, seed + 1, with_minus=with_minus)]
        if other_size is not None:
            vectors.append(vector(other_size, seed + 6, with_minus=False))
        both.append((vectors, torch.arange(latents)))
    (actual, idle), (expected, expected_idle) = both
    other = actual[1] if len(actual) > 1 else None
    step_scalars.finish_step(actual[0], other, factor, rates, (0.9, 0.99), 1e-8, idle, fired, 50)
    for mine, wanted in zip(actual, expected, strict=True):
        gradient = wanted.whole_gradient if factor is None else wanted.whole_gradient * factor
        reference.adam(*wanted[:3], gradient, rates, beta1=0.9, beta2=0.99, eps=1e-8)
        for a, e in zip(mine[:3], wanted[:3], strict=True):
            torch.testing.assert_close(a, e, rtol=2e-6, atol=1e-7)
    reference.count_idle(expected_idle, fired, 50)
    assert_same_bits(idle, expected_idle)


def test_a_step_updates_vectors_by_the_kernels() -> None:
    """Changes increase the versions that autograd checks."""
    sae = SAE(6, 9, k=2, variant="jumprelu", seed=0)
    adam = Adam(sae, 1e-2, Rules())
    gradients = {"b_dec": torch.ones(6), "jump_threshold": -torch.ones(9)}
    before = sae.b_dec._version, sae.jump_threshold._version
    idle, fired = torch.zeros(9, dtype=torch.int64), torch.arange(9)
    adam.finish(adam.vectors(gradients, None), None, adam.next_rates(), idle, fired, 4)
    torch.testing.assert_close(sae.b_dec.detach(), torch.full((6,), -1e-2))
    torch.testing.assert_close(sae.jump_threshold.detach(), torch.full((9,), 0.01 + 1e-2))
    assert before[0] < sae.b_dec._version
    assert before[1] < sae.jump_threshold._version
    assert idle.tolist() == [4] + [0] * 8
