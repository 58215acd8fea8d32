"""Calls of threshold_encode: layouts, threads, packed weights, empty batches and room."""

import math

import pytest
import torch
from helpers.codes import assert_same_code
from helpers.strategies import (
    FLOATS,
    Shape,
    as_laid_out,
    dtypes,
    layouts,
    native_products,
    normal,
    seeds,
    shapes,
)
from hypothesis import given
from hypothesis import strategies as st

import saefast
from saefast.ops.cpu import native
from saefast.ops.encode_cpu import PackedWeight, Screen, threshold_on_cpu
from saefast.ops.encode_packed import repacked, threshold_packed
from saefast.ops.threshold_encode import all_above


@given(shape=shapes(), seed=seeds, layout=layouts, dtype=dtypes)
def test_memory_layout_does_not_change_results(
    shape: Shape, seed: int, layout: str, dtype: torch.dtype
) -> None:
    n, d, m, width = shape
    x, weight = normal((n, d), seed, dtype), normal((m, d), seed + 1, dtype)
    threshold = normal((m,), seed + 2, dtype)
    expected = saefast.threshold_encode(x, weight, threshold=threshold, width=width)
    actual = saefast.threshold_encode(
        as_laid_out(x, layout),
        as_laid_out(weight, layout),
        threshold=as_laid_out(threshold[:, None], layout)[:, 0],
        width=width,
    )
    assert_same_code(actual, expected)


def test_a_number_is_a_threshold_in_the_dtype_of_scores() -> None:
    for dtype in FLOATS:
        x, weight = normal((5, 8), 0, dtype), normal((30, 8), 1, dtype)
        wide = torch.tensor(0.1, dtype=torch.promote_types(dtype, torch.float32))
        expected = saefast.threshold_encode(x, weight, threshold=wide, width=9)
        for same in (0.1, wide.repeat(30)):
            actual = saefast.threshold_encode(x, weight, threshold=same, width=9)
            assert_same_code(actual, expected)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("n", [1, 5, 200])
def test_any_number_of_threads_gives_the_same_bits(level: str, n: int, precision: str) -> None:
    x, weight = normal((n, 70), 0, torch.float32), normal((1500, 70), 1, torch.float32)
    codes = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        codes.append(
            saefast.threshold_encode(x, weight, threshold=12.0, width=40, precision=precision)
        )
    assert (codes[0].counts > 0).any()
    for code in codes[1:]:
        assert_same_code(code, codes[0])


def test_every_instruction_set_gives_the_same_bits() -> None:
    x, weight = normal((50, 131), 0, torch.float32), normal((900, 131), 1, torch.float32)
    before = native.level()
    codes = []
    for name in native.usable_levels():
        native.use_level(name)
        codes.append(saefast.threshold_encode(x, weight, threshold=15.0, width=200))
    native.use_level(before)
    for code in codes[1:]:
        assert_same_code(code, codes[0])


@given(shape=shapes(), seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]))
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_a_packed_weight_gives_the_same_bits(
    level: str, shape: Shape, seed: int, dtype: torch.dtype, precision: str
) -> None:
    n, d, m, width = shape
    x, weight = normal((n, d), seed, dtype), normal((m, d), seed + 1, dtype)
    bias, threshold = normal((m,), seed + 2, dtype), normal((m,), seed + 3, dtype)
    expected = saefast.threshold_encode(
        x, weight, bias, threshold=threshold, width=width, precision=precision
    )
    for packed in (None, repacked(None, False, x, weight, width, precision)):
        actual = threshold_packed(x, weight, bias, threshold, width, precision, packed)
        assert_same_code(actual, expected)
    for product in native_products() if precision == "exact" else ():
        screen = Screen("native", product)
        panels = PackedWeight.of(weight, screen)
        actual = threshold_on_cpu(
            x, weight, bias, None, threshold, width, precision, screen, panels
        )
        assert_same_code(actual, expected)


def test_an_empty_batch_is_encoded() -> None:
    code = saefast.threshold_encode(torch.empty(0, 4), torch.randn(6, 4), threshold=0.0, width=3)
    assert code.values.shape == code.indices.shape == (0, 3)
    assert code.counts.shape == (0,)
    assert code.indices.dtype == code.counts.dtype == torch.int64


@pytest.mark.parametrize(
    ("width", "latents", "most", "asked", "used"),
    [
        (2, 30, math.inf, [2, 12], 6),
        (2, 10, 6, [2, 10], 6),
        (40, 30, math.inf, [30], 6),
        (2, 30, 5, [2], 2),
    ],
)
def test_room_grows_until_all_fit_or_a_row_has_too_many(width, latents, most, asked, used):
    """Rows have no or 6 active latents."""
    x = torch.tensor([[0.0], [1.0]])
    weight = torch.arange(6.0 - latents, 6)[:, None] + 0.5
    widths = []

    def encode(width):
        widths.append(width)
        return saefast.threshold_encode(x, weight, threshold=0.1, width=width)

    found = all_above(encode, width, latents, most)
    assert widths == asked
    assert found.counts.tolist() == [0, 6]
    assert found.values.shape == found.indices.shape == (2, used)
