"""sparse_decode, gather_dots and latent_sum: three ops closed under differentiation."""

import pytest
import torch
from helpers.codes import draw_indices
from helpers.strategies import (
    FLOATS,
    Shape,
    as_laid_out,
    dtypes,
    layouts,
    normal,
    seeds,
    shapes,
    small_integers,
)
from helpers.tolerance import assert_no_worse_than_torch, assert_same_bits, true_dots
from hypothesis import given, settings
from torch import Tensor

import saefast
from saefast import reference

ops = torch.ops.saefast


@settings(max_examples=40)
@given(shape=shapes(), dtype=dtypes, seed=seeds)
def test_integers_give_the_reference_bit_for_bit(
    level: str, shape: Shape, dtype: torch.dtype, seed: int
) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, weight = small_integers((n, k), seed, dtype), small_integers((m, d), seed + 1, dtype)
    rows, bias = small_integers((n, d), seed + 2, dtype), small_integers((d,), seed + 3, dtype)
    assert_same_bits(
        saefast.sparse_decode(values, indices, weight, bias),
        reference.sparse_decode(values, indices, weight, bias),
    )
    assert_same_bits(
        ops.gather_dots(rows, weight, indices), reference.gather_dots(rows, weight, indices)
    )
    sums = ops.latent_sum(values, indices, rows, m)
    assert_same_bits(sums, reference.latent_sum(values, indices, rows, m))
    silent = torch.ones(m, dtype=torch.bool)
    silent[indices.flatten()] = False
    assert (sums[silent] == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [Shape(70, 300, 500, 33), Shape(5, 17, 40, 40)], ids=str)
def test_errors_are_at_most_torchs(level: str, dtype: torch.dtype, shape: Shape) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, 0)
    values, weight = normal((n, k), 1, dtype), normal((m, d), 2, dtype)
    rows = normal((n, d), 3, dtype)
    dense = torch.zeros(n, m, dtype=dtype).scatter(1, indices, values)
    compute = torch.float32 if dtype == torch.bfloat16 else dtype
    full, code = weight.to(compute), dense.to(compute)

    truth = true_dots(values, weight[indices].mT)
    decoded = saefast.sparse_decode(values, indices, weight)
    assert_no_worse_than_torch(decoded, (code @ full).to(dtype), truth)

    truth = true_dots(rows, weight[indices])
    torchs = (rows.to(compute) @ full.T).gather(1, indices).to(dtype)
    assert_no_worse_than_torch(ops.gather_dots(rows, weight, indices), torchs, truth)

    truth = true_dots(dense.T, rows.T.expand(m, d, n))
    torchs = (code.T @ rows.to(compute)).to(dtype)
    assert_no_worse_than_torch(ops.latent_sum(values, indices, rows, m), torchs, truth)


@settings(max_examples=25)
@given(shape=shapes(), seed=seeds)
def test_decode_is_linear_and_independent_of_the_order_of_entries(
    level: str, shape: Shape, seed: int
) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, other = (small_integers((n, k), seed + i, torch.float32) for i in (0, 1))
    weight = small_integers((m, d), seed + 2, torch.float32)

    def decode(v: Tensor, i: Tensor) -> Tensor:
        return saefast.sparse_decode(v, i, weight)

    both = decode(values, indices) + 2 * decode(other, indices)
    assert_same_bits(decode(values + 2 * other, indices), both)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    assert_same_bits(decode(values[:, order], indices[:, order]), decode(values, indices))
    assert_same_bits(decode(values * 0, indices).abs(), torch.zeros(n, d))


@settings(max_examples=25)
@given(shape=shapes(), seed=seeds, dtype=dtypes)
def test_entries_of_zero_are_ignored(
    level: str, shape: Shape, seed: int, dtype: torch.dtype
) -> None:
    """Bit for bit, at any place in the row, and for any values in the weight rows they refer to."""
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, weight = normal((n, k), seed, dtype), normal((m, d), seed + 1, dtype)
    rows = normal((n, d), seed + 2, dtype)
    places = torch.rand(n, 2 * k, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    places = places[:, :k].sort(dim=1).values
    bad = torch.cat([weight, torch.full((1, d), torch.nan, dtype=dtype)])
    padded_values = torch.zeros(n, 2 * k, dtype=dtype).scatter(1, places, values)
    padded_indices = torch.full((n, 2 * k), m).scatter(1, places, indices)
    assert_same_bits(
        saefast.sparse_decode(padded_values, padded_indices, bad),
        saefast.sparse_decode(values, indices, weight),
    )
    silent, everywhere = torch.zeros(1, 2 * k, dtype=dtype), torch.zeros(1, 2 * k).long()
    sums = ops.latent_sum(
        torch.cat([padded_values, silent]),
        torch.cat([padded_indices % m, everywhere]),
        torch.cat([rows, torch.full((1, d), torch.nan, dtype=dtype)]),
        m,
    )
    assert_same_bits(sums, ops.latent_sum(values, indices, rows, m))
    if dtype != torch.bfloat16:
        padded = ops.decode_residual(padded_values, padded_indices, bad, None, rows, 0.5)
        plain = ops.decode_residual(values, indices, weight, None, rows, 0.5)
        expected = torch.zeros(n, 2 * k, dtype=dtype).scatter(1, places, plain[1])
        for actual, wanted in zip(padded, (plain[0], expected, plain[2]), strict=True):
            assert_same_bits(actual, wanted)


def test_a_repeated_latent_counts_twice(level: str) -> None:
    weight = small_integers((4, 9), 0, torch.float32)
    twice = torch.tensor([[2, 2]])
    values = torch.tensor([[1.0, 3.0]])
    assert_same_bits(saefast.sparse_decode(values, twice, weight), 4 * weight[2:3])
    assert_same_bits(ops.latent_sum(values, twice, weight[:1], 4)[2], 4 * weight[0])


@settings(max_examples=25)
@given(shape=shapes(), seed=seeds, layout=layouts, dtype=dtypes)
def test_memory_layout_does_not_change_results(
    shape: Shape, seed: int, layout: str, dtype: torch.dtype
) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, weight = normal((n, k), seed, dtype), normal((m, d), seed + 1, dtype)
    rows = normal((n, d), seed + 2, dtype)

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.int64 else as_laid_out(tensor, layout)

    for op, inputs in (
        (saefast.sparse_decode, (values, indices, weight)),
        (ops.gather_dots, (rows, weight, indices)),
        (lambda *a: ops.latent_sum(*a, m), (values, indices, rows)),
    ):
        assert_same_bits(op(*(laid_out(t) for t in inputs)), op(*inputs))


@pytest.mark.usefixtures("torch_threads")
def test_any_number_of_threads_gives_the_same_bits(level: str) -> None:
    shape = Shape(150, 83, 200, 12)
    n, d, m, k = shape
    indices = draw_indices(shape, 0)
    values, weight = normal((n, k), 1, torch.float32), normal((m, d), 2, torch.float32)
    rows = normal((n, d), 3, torch.float32)
    seen = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        seen.append(
            (
                saefast.sparse_decode(values, indices, weight),
                ops.gather_dots(rows, weight, indices),
                ops.latent_sum(values, indices, rows, m),
                *ops.decode_residual(values, indices, weight, None, rows, 0.5),
            )
        )
    for results in seen[1:]:
        for actual, expected in zip(results, seen[0], strict=True):
            assert_same_bits(actual, expected)


@settings(max_examples=25)
@given(shape=shapes(), seed=seeds)
def test_decode_residual_equals_the_ops_it_fuses(level: str, shape: Shape, seed: int) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, weight = normal((n, k), seed, torch.float64), normal((m, d), seed + 1, torch.float64)
    values = torch.where(values.abs() > 0.5, values, 0.0)
    bias, target = normal((d,), seed + 2, torch.float64), normal((n, d), seed + 3, torch.float64)
    actual = ops.decode_residual(values, indices, weight, bias, target, 0.25)
    expected = reference.decode_residual(values, indices, weight, bias, target, 0.25)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    assert (actual[1][values == 0] == 0).all()


def test_weights_beyond_32_bit_indices() -> None:
    m, d = 2**20 + 8, 2056
    assert m * d > 2**31
    weight = torch.zeros(m, d, dtype=torch.bfloat16)  # pages that are not written take no memory
    weight[-3:, -8:] = torch.tensor([[1.0], [2.0], [3.0]])
    indices = torch.tensor([[m - 1, m - 3], [m - 2, 0]])
    values = torch.ones(2, 2, dtype=torch.bfloat16)
    out = saefast.sparse_decode(values, indices, weight)
    assert (out[0, -8:] == 4).all()
    assert (out[1, -8:] == 2).all()
    assert (out[:, :-8] == 0).all()
    dots = ops.gather_dots(torch.ones(2, d, dtype=torch.bfloat16), weight, indices)
    assert dots.tolist() == [[3 * 8, 8], [2 * 8, 0]]


def test_an_empty_batch_is_decoded() -> None:
    empty = torch.empty(0, 3)
    weight, indices = torch.randn(5, 4), torch.empty(0, 3, dtype=torch.int64)
    assert saefast.sparse_decode(empty, indices, weight).shape == (0, 4)
    assert (ops.latent_sum(empty, indices, torch.empty(0, 4), 5) == 0).all()
