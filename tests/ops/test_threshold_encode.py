"""threshold_encode against its definition: selection, exactness at the threshold, and room."""

import pytest
import torch
from helpers.codes import assert_same_code, at_the_scores, selected
from helpers.strategies import (
    FLOATS,
    Shape,
    dtypes,
    generator,
    normal,
    seeds,
    shapes,
    small_integers,
    uneven,
)
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast import reference
from saefast.ops.encode_cpu import Screen, encode_on_cpu, threshold_on_cpu
from saefast.ops.screens import screen_at, usable_screens


def all_scores(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    precision: str = "exact",
) -> Tensor:
    """Return [n, m] scores of `topk_encode` for all latents; bfloat16 is scored in float32."""
    wide = [t if t is None else t.to(score_dtype(x)) for t in (x, weight, bias, scale)]
    product = "float32" if precision == "exact" else "bfloat16"
    screen = Screen("native", product)
    values, indices = encode_on_cpu(*wide, weight.shape[0], precision, screen)
    return torch.zeros_like(values).scatter(1, indices, values)


def score_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def assert_right(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor,
    width: int,
) -> None:
    """Assert that every screen gives all exact scores above the threshold, bit for bit."""
    scores = all_scores(x, weight, bias, scale)
    expected = selected(scores, threshold, width, x.dtype)
    for screen in usable_screens():
        actual = threshold_on_cpu(x, weight, bias, scale, threshold, width, "exact", screen)
        assert_same_code(actual, expected)


@settings(max_examples=40)
@given(shape=shapes(), dtype=dtypes, seed=seeds, one_for_all=st.booleans())
@pytest.mark.parametrize("with_bias", [False, True])
def test_integers_give_the_reference_bit_for_bit(
    level: str, shape: Shape, dtype: torch.dtype, seed: int, one_for_all: bool, with_bias: bool
) -> None:
    n, d, m, width = shape
    x, weight = small_integers((n, d), seed, dtype), small_integers((m, d), seed + 1, dtype)
    bias = small_integers((m,), seed + 2, dtype) if with_bias else None
    scale = small_integers((m,), seed + 3, dtype) if with_bias else None
    threshold = small_integers(() if one_for_all else (m,), seed + 4, score_dtype(x)) * d**0.5 // 1
    expected = reference.threshold_encode(
        x, weight, bias, threshold=threshold, width=width, scale=scale
    )
    for screen in usable_screens():
        actual = threshold_on_cpu(x, weight, bias, scale, threshold, width, "exact", screen)
        assert_same_code(actual, expected)
    public = saefast.threshold_encode(
        x, weight, bias, threshold=threshold, width=width, scale=scale
    )
    assert_same_code(public, expected)


@settings(max_examples=40)
@given(shape=shapes(), dtype=dtypes, seed=seeds)
@pytest.mark.parametrize("data", [normal, uneven])
def test_a_threshold_equal_to_a_score_is_not_exceeded(
    level: str, shape: Shape, dtype: torch.dtype, seed: int, data: object
) -> None:
    n, d, m, width = shape
    x, weight = data((n, d), seed, dtype), data((m, d), seed + 1, dtype)
    bias, scale = normal((m,), seed + 2, dtype), normal((m,), seed + 3, dtype)
    for operands in ((None, None), (bias, None), (bias, scale)):
        threshold = at_the_scores(all_scores(x, weight, *operands), seed + 4)
        assert_right(x, weight, *operands, threshold, width)


@given(seed=seeds)
def test_large_biases_may_nearly_cancel_the_threshold(level: str, seed: int) -> None:
    m = 300
    x, weight = normal((4, 24), seed, torch.float32), normal((m, 24), seed + 1, torch.float32)
    bias = 10.0 ** torch.randint(0, 7, (m,), generator=generator(seed)) * normal(
        (m,), seed + 2, torch.float32
    )
    scale = 1 + torch.rand(m, generator=generator(seed + 3))
    threshold = at_the_scores(all_scores(x, weight, bias, scale), seed + 4)
    assert_right(x, weight, bias, scale, threshold, 40)


@pytest.mark.parametrize("d", [64, 576])
@pytest.mark.parametrize("loser", ["x", "weight"])
def test_rounding_in_one_direction(level: str, d: int, loser: str) -> None:
    """One column loses as much as possible to rounding, with the threshold just below its score.

    bfloat16 steps by 2^-7 above 1: below 1 + 2^-8 it rounds down to 1, above it rounds up. Some of
    its neighbours lose nothing and reach the threshold without exceeding it.
    """
    rounds_down = torch.full((1, d), 1 + 2.0**-8 - 2.0**-14)
    rounds_up = torch.full((1, d), 1 + 2.0**-8 + 2.0**-14)
    ones = torch.ones(1, d)
    if loser == "weight":
        x, best = ones, rounds_down
    else:  # rounding decreases x where the best column is positive, else increases it
        signs = ones.clone()
        signs[:, ::2] = -1
        x, best = torch.where(signs > 0, rounds_down, rounds_up), signs
    score = all_scores(x, best)[0, 0]
    weight = torch.zeros(41, d)
    weight[40] = best
    below = torch.nextafter(score, torch.tensor(-torch.inf))
    bias = below.repeat(41)
    bias[40] = 0
    for screen in usable_screens():
        code = threshold_on_cpu(x, weight, bias, None, below, 3, "exact", screen)
        assert code.counts.tolist() == [1]
        assert code.indices.tolist() == [[40, 0, 0]]
        assert_same_bits(code.values[0], torch.stack([score, score * 0, score * 0]))
        code = threshold_on_cpu(x, weight, bias, None, score, 3, "exact", screen)
        assert code.counts.tolist() == [0]
    rounded = saefast.threshold_encode(x, weight, bias, threshold=below, width=3, precision="bf16")
    assert rounded.counts.tolist() == [0]


@given(seed=seeds)
def test_scores_may_differ_only_by_the_order_of_summation(level: str, seed: int) -> None:
    m, d = 400, 200
    x = torch.ones(2, d)
    values = normal((d,), seed, torch.bfloat16).float()
    orders = torch.rand(m, d, generator=generator(seed)).argsort(dim=1)
    scores = all_scores(x, values[orders])
    assert_right(x, values[orders], None, None, scores.median(), 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_and_biases_of_any_size(level: str, dtype: torch.dtype) -> None:
    """In one weight, so that one large number must not widen the bound of others, nor overflow.

    The first row is zero: its bounds have no width and its scores are the biases.
    """
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2**10
    sizes = [largest, 1e38, 1e36, 1e30, 1e4, 1.0, 1e-30, 1e-40, smallest, 0.0]
    ends = torch.tensor([*sizes, *(-size for size in sizes)], dtype=dtype)
    threshold, bias = (t.flatten() for t in torch.meshgrid(ends, ends, indexing="ij"))
    m = len(bias)
    x, weight = normal((3, 8), 0, dtype), normal((m, 8), 1, dtype)
    x[0] = 0
    for part in (bias.abs() < 1e35, bias.abs() < 1e-20, bias.abs() < torch.inf):
        shared = (x, weight[part], bias[part], None)
        assert_right(*shared, threshold[part], 9)
        for bent in (-torch.inf, torch.inf):
            near = torch.nextafter(bias[part], torch.tensor(bent, dtype=dtype)).nan_to_num()
            assert_right(*shared, near, 9)


def test_norms_of_rows_beyond_float32(level: str) -> None:
    """Every product is an integer, although the rows' norms are infinite in float32."""
    x, weight = small_integers((20, 8), 0, torch.float32), small_integers((50, 8), 1, torch.float32)
    expected = reference.threshold_encode(x, weight, threshold=torch.tensor(3.0), width=9)
    assert expected.counts.any()
    huge, tiny = x * 2.0**126, weight * 2.0**-126
    for screen in usable_screens():
        code = threshold_on_cpu(huge, tiny, None, None, torch.tensor(3.0), 9, "exact", screen)
        best = encode_on_cpu(huge, tiny, None, None, 9, "exact", screen)
        for found, wanted in zip(code, expected, strict=True):
            assert_same_bits(found, wanted)
        assert_same_bits(best.indices, reference.topk_encode(x, weight, k=9).indices)


@pytest.mark.parametrize("width", [1, 31, 700])
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_or_no_latents_are_active(level: str, width: int, dtype: torch.dtype) -> None:
    x, weight = normal((9, 21), 0, dtype), normal((700, 21), 1, dtype)
    lowest = torch.tensor(torch.finfo(torch.float32).min, dtype=score_dtype(x))
    for screen in usable_screens():
        everything = threshold_on_cpu(x, weight, None, None, lowest, width, "exact", screen)
        top = encode_on_cpu(x, weight, None, None, width, "exact", screen)
        assert everything.counts.tolist() == [700] * 9
        assert_same_bits(everything.values, top.values)
        assert_same_bits(everything.indices, top.indices)
        for never in (-lowest, lowest + torch.inf):
            nothing = threshold_on_cpu(x, weight, None, None, never, width, "exact", screen)
            for part in nothing:
                assert part.count_nonzero() == 0


@given(shape=shapes(), seed=seeds)
def test_counts_are_right_beyond_the_room(level: str, shape: Shape, seed: int) -> None:
    n, d, m, width = shape
    x, weight = normal((n, d), seed, torch.float32), normal((m, d), seed + 1, torch.float32)
    full = saefast.threshold_encode(x, weight, threshold=0.0, width=m)
    narrow = saefast.threshold_encode(x, weight, threshold=0.0, width=width)
    assert_same_bits(narrow.counts, full.counts)
    assert_same_bits(narrow.values, full.values[:, :width])
    assert_same_bits(narrow.indices, full.indices[:, :width])
    assert_same_bits(full.counts, (full.values > 0).sum(1))
    assert_same_bits(full.counts, (all_scores(x, weight) > 0).sum(1))


def test_thousands_of_ties(level: str) -> None:
    m = 5000
    x, weight = normal((3, 17), 0, torch.float32), normal((1, 17), 1, torch.float32)
    weight = weight.repeat(m, 1)
    weight[m - 1] *= 2
    scores = all_scores(x, weight)
    for row in range(3):
        at = scores[row, 0]
        for threshold in (at, torch.nextafter(at, torch.tensor(-torch.inf))):
            assert_right(x, weight, None, None, threshold, 7)


@given(shape=shapes(), seed=seeds)
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_masked_latents_are_never_active(
    level: str, shape: Shape, seed: int, precision: str
) -> None:
    n, d, m, width = shape
    x, weight = small_integers((n, d), seed, torch.float32), torch.ones(m, d)
    bias = small_integers((m,), seed + 1, torch.float32)
    threshold = small_integers((m,), seed + 2, torch.float32)
    bias[torch.rand(m, generator=generator(seed)) < 0.4] = -torch.inf
    threshold[torch.rand(m, generator=generator(seed + 1)) < 0.4] = torch.inf
    screens = usable_screens() if precision == "exact" else (screen_at(precision),)
    for scale in (None, -torch.ones(m)):
        expected = reference.threshold_encode(
            x, weight, bias, threshold=threshold, width=width, scale=scale, precision=precision
        )
        for screen in screens:
            actual = threshold_on_cpu(x, weight, bias, scale, threshold, width, precision, screen)
            assert_same_code(actual, expected)
        never = (bias == -torch.inf) | (threshold == torch.inf)
        assert not never[expected.indices[expected.values != 0]].any()


def test_scores_that_overflow_are_compared_like_infinity(level: str) -> None:
    """Infinity is above every threshold; NaN, from infinity minus infinity, is above none."""
    x = torch.full((1, 200), 1e30)
    weight = torch.zeros(6, 200)
    weight[3] = 1e30 * (-1.0) ** torch.arange(200)
    weight[1:3] = 1e30
    for screen in usable_screens():
        code = threshold_on_cpu(x, weight, None, None, torch.tensor(5.0), 3, "exact", screen)
        assert code.counts.tolist() == [2]
        assert code.indices.tolist() == [[1, 2, 0]]
        assert code.values.tolist() == [[torch.inf, torch.inf, 0]]


@settings(max_examples=30)
@given(shape=shapes(), seed=seeds, dtype=dtypes)
def test_bf16_precision_compares_the_values_of_topk_encode(
    level: str, shape: Shape, seed: int, dtype: torch.dtype
) -> None:
    n, d, m, width = shape
    x, weight = normal((n, d), seed, dtype), normal((m, d), seed + 1, dtype)
    bias, scale = normal((m,), seed + 2, dtype), normal((m,), seed + 3, dtype)
    for operands in ((None, None), (bias * 30, None), (bias, scale)):
        scores = all_scores(x, weight, *operands, precision="bf16")
        threshold = at_the_scores(scores, seed + 4)
        expected = selected(scores, threshold, width, dtype)
        actual = saefast.threshold_encode(
            x,
            weight,
            operands[0],
            threshold=threshold,
            width=width,
            scale=operands[1],
            precision="bf16",
        )
        assert_same_code(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bf16_precision_with_values_below_its_range(level: str, dtype: torch.dtype) -> None:
    tiny = torch.tensor([1e-60, 1e-46, 1e-44, 1e-39, 1e-30], dtype=torch.float64)
    ends = torch.cat([tiny, -tiny, tiny * 0]).to(dtype)
    threshold, bias = (t.flatten() for t in torch.meshgrid(ends, ends, indexing="ij"))
    x, weight = torch.zeros(1, 3, dtype=dtype), torch.ones(len(bias), 3, dtype=dtype)
    scores = all_scores(x, weight, bias, precision="bf16")
    actual = saefast.threshold_encode(
        x, weight, bias, threshold=threshold, width=len(bias), precision="bf16"
    )
    assert_same_code(actual, selected(scores, threshold, len(bias), dtype))


@pytest.mark.parametrize(("a", "b"), [(-10, -700), (-700, -10), (-400, -400), (-80, -80)])
def test_products_far_below_float32_reach_thresholds_of_zero(level: str, a: int, b: int) -> None:
    """Norms that float32, or their squares that float64 cannot hold, are not those of zeros."""
    x = small_integers((9, 5), 0, torch.float64) * 2.0**a
    weight = small_integers((40, 5), 1, torch.float64) * 2.0**b
    threshold = torch.zeros(40, dtype=torch.float64)
    expected = reference.threshold_encode(x, weight, threshold=threshold, width=40)
    assert expected.counts.sum() > 50
    for screen in usable_screens():
        code = threshold_on_cpu(x, weight, None, None, threshold, 40, "exact", screen)
        assert_same_code(code, expected)
