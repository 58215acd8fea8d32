"""topk_encode against its definition: selection, exactness, ties, layouts, determinism."""

import pytest
import torch
from helpers.codes import assert_top_k
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
    uneven,
)
from helpers.tolerance import assert_no_worse_than_torch, assert_same_bits, true_dots
from hypothesis import given, settings
from torch import Tensor

import saefast
from saefast import reference
from saefast.ops.cpu import native
from saefast.ops.encode_cpu import Screen, encode_on_cpu
from saefast.ops.screens import screen_at, usable_screens


@settings(max_examples=40)
@given(shape=shapes(), dtype=dtypes, seed=seeds)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_integers_give_the_reference_bit_for_bit(
    level: str, shape: Shape, dtype: torch.dtype, seed: int, with_bias: bool, absolute: bool
) -> None:
    n, d, m, k = shape
    x, weight = small_integers((n, d), seed, dtype), small_integers((m, d), seed + 1, dtype)
    bias = small_integers((m,), seed + 2, dtype) if with_bias else None
    scale = small_integers((m,), seed + 3, dtype) if with_bias else None
    if bias is not None:  # masked latents come last, regardless of their scale
        bias[torch.rand(m, generator=torch.Generator().manual_seed(seed)) < 0.3] = -torch.inf
    expected = reference.topk_encode(x, weight, bias, k=k, scale=scale, absolute=absolute)
    for screen in usable_screens():
        actual = encode_on_cpu(x, weight, bias, scale, k, "exact", screen, absolute=absolute)
        assert_same_bits(actual.indices, expected.indices)
        assert_same_bits(actual.values, expected.values)


@settings(max_examples=30)
@given(shape=shapes(), dtype=dtypes, seed=seeds)
@pytest.mark.parametrize("data", [normal, uneven])
@pytest.mark.parametrize("absolute", [False, True])
def test_exact_is_the_top_k_of_full_precision(
    level: str, shape: Shape, dtype: torch.dtype, seed: int, data: object, absolute: bool
) -> None:
    n, d, m, k = shape
    x, weight = data((n, d), seed, dtype), data((m, d), seed + 1, dtype)
    bias, scale = normal((m,), seed + 2, dtype), normal((m,), seed + 3, dtype)
    codes = [
        encode_on_cpu(x, weight, bias, scale, k, "exact", screen, absolute=absolute)
        for screen in usable_screens()
    ]
    assert_top_k(codes[0], x, weight, bias, scale, absolute=absolute)
    for other in codes[1:]:
        assert_same_bits(other.indices, codes[0].indices)
        assert_same_bits(other.values, codes[0].values)


@given(seed=seeds)
def test_near_ties_below_bfloat16_are_distinguished(level: str, seed: int) -> None:
    """Hundreds of columns that bfloat16 cannot distinguish, in random order."""
    m, d, k = 700, 96, 50
    base = normal((1, d), seed, torch.float32)
    steps = torch.randperm(m, generator=torch.Generator().manual_seed(seed)).float()
    weight = base * (1 + steps[:, None] * 2.0**-19)
    x = base * 3
    screen = Screen("native", "bfloat16")
    exact = encode_on_cpu(x, weight, None, None, k, "exact", screen)
    assert_top_k(exact, x, weight, None, None)
    truth = (x.double() @ weight.double().T).topk(k).indices
    assert set(exact.indices[0].tolist()) == set(truth[0].tolist())
    rounded = encode_on_cpu(x, weight, None, None, k, "bf16", screen)
    assert len(rounded.values.unique()) < k / 2  # scores of the screen: mostly ties


@pytest.mark.parametrize("d", [64, 576])
@pytest.mark.parametrize("loser", ["x", "weight"])
def test_rounding_in_one_direction(level: str, d: int, loser: str) -> None:
    """The best column loses as much as possible to rounding; the other columns lose nothing.

    bfloat16 steps by 2^-7 above 1: below 1 + 2^-8 it rounds down to 1, above it rounds up.
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
    score = float((x.double() * best.double()).sum())
    # Rivals score slightly less than the best, without loss in bfloat16.
    gap = 2.0**-12
    rivals = 40
    weight = torch.zeros(rivals + 1, d)
    weight[rivals] = best
    bias = torch.full((rivals + 1,), score - gap)
    bias[rivals] = 0
    exact = encode_on_cpu(x, weight, bias, None, 1, "exact", Screen("native", "bfloat16"))
    assert exact.indices.item() == rivals
    rounded = encode_on_cpu(x, weight, bias, None, 1, "bf16", Screen("native", "bfloat16"))
    assert rounded.indices.item() != rivals


@given(seed=seeds)
def test_scores_may_differ_only_by_the_order_of_summation(level: str, seed: int) -> None:
    """Columns with the same values in another order: one true score, many rounded ones.

    The values are exact in bfloat16, so only the rounding of sums separates screen and score. The
    truth is the result of the same op when it must not leave out any column.
    """
    m, d, k = 400, 200, 30
    x = torch.ones(2, d, dtype=torch.bfloat16)
    values = normal((d,), seed, torch.bfloat16)
    orders = torch.rand(m, d, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    assert_best_of_all(x.float(), values[orders].float(), None, None, k)


@given(seed=seeds)
def test_scores_may_differ_only_by_the_rounding_of_bias_and_scale(level: str, seed: int) -> None:
    m, k = 400, 30
    x, weight = normal((1, 8), seed, torch.float32), normal((1, 8), seed + 2, torch.float32) / 8
    scale = 1 + torch.rand(m, generator=torch.Generator().manual_seed(seed))
    scores = 1000 + 1e-3 * torch.rand(m, generator=torch.Generator().manual_seed(seed + 1))
    bias = scores / scale - x @ weight[0]
    assert_best_of_all(x, weight.repeat(m, 1), bias, scale, k)


def assert_best_of_all(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> None:
    """Assert that the k largest are the first k of all, for which no column can be left out."""
    for screen in usable_screens():
        everything = encode_on_cpu(x, weight, bias, scale, len(weight), "exact", screen)
        best = encode_on_cpu(x, weight, bias, scale, k, "exact", screen)
        assert_same_bits(best.indices, everything.indices[:, :k])
        assert_same_bits(best.values, everything.values[:, :k])


def test_scores_that_overflow_to_nan_come_first_as_in_torch(level: str) -> None:
    x = torch.full((1, 200), 1e30)
    weight = torch.ones(6, 200)
    weight[3] = 1e30 * (-1.0) ** torch.arange(200)  # infinity minus infinity
    for screen in usable_screens():
        code = encode_on_cpu(x, weight, None, None, 2, "exact", screen)
        assert code.indices.tolist() == [[3, 0]]
        assert code.values[0, 0].isnan()


@pytest.mark.parametrize("k", [1, 7, 100])
def test_lists_grow_for_ties(level: str, k: int) -> None:
    m = 5000
    x, weight = normal((3, 17), 0, torch.float32), normal((1, 17), 1, torch.float32)
    weight = weight.repeat(m, 1)
    weight[m - 1] *= 2  # the last column comes first or last
    for screen in usable_screens():
        code = encode_on_cpu(x, weight, None, None, k, "exact", screen)
        expected = reference.topk_encode(x.double(), weight.double(), k=k)
        assert_same_bits(code.indices, expected.indices)


@given(shape=shapes(), seed=seeds)
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("absolute", [False, True])
def test_masked_latents_come_last(
    level: str, shape: Shape, seed: int, precision: str, absolute: bool
) -> None:
    """Their scale may be negative or zero."""
    n, d, m, k = shape
    x, weight = small_integers((n, d), seed, torch.float32), torch.ones(m, d)
    bias = small_integers((m,), seed + 1, torch.float32)
    masked = torch.rand(m, generator=torch.Generator().manual_seed(seed)) < 0.5
    bias[masked] = -torch.inf
    scale = -torch.randint(0, 3, (m,), generator=torch.Generator().manual_seed(seed)).float()
    expected = reference.topk_encode(
        x, weight, bias, k=k, scale=scale, precision=precision, absolute=absolute
    )
    best = min(k, int((~masked).sum()))
    assert not masked[expected.indices[:, :best]].any()
    assert (expected.values[:, best:] == -torch.inf).all()
    screens = usable_screens() if precision == "exact" else (screen_at(precision),)
    for screen in screens:
        actual = encode_on_cpu(x, weight, bias, scale, k, precision, screen, absolute=absolute)
        assert_same_bits(actual.indices, expected.indices)
        assert_same_bits(actual.values, expected.values)


@settings(max_examples=25)
@given(shape=shapes(), seed=seeds)
def test_bf16_precision_rounds_only_the_operands(level: str, shape: Shape, seed: int) -> None:
    n, d, m, k = shape
    x, weight = normal((n, d), seed, torch.float32), normal((m, d), seed + 1, torch.float32)
    bias = normal((m,), seed + 2, torch.float32)
    code = saefast.topk_encode(x, weight, bias, k=k, precision="bf16")
    rounded = x.bfloat16().float(), weight.bfloat16().float(), bias
    assert_top_k(code, *rounded, None)


@given(shape=shapes(), seed=seeds, layout=layouts, dtype=dtypes)
def test_memory_layout_does_not_change_results(
    shape: Shape, seed: int, layout: str, dtype: torch.dtype
) -> None:
    n, d, m, k = shape
    x, weight = normal((n, d), seed, dtype), normal((m, d), seed + 1, dtype)
    expected = saefast.topk_encode(x, weight, k=k)
    actual = saefast.topk_encode(as_laid_out(x, layout), as_laid_out(weight, layout), k=k)
    assert_same_bits(actual.indices, expected.indices)
    assert_same_bits(actual.values, expected.values)


@settings(max_examples=20)
@given(shape=shapes(), seed=seeds)
def test_rows_and_columns_can_be_permuted(shape: Shape, seed: int) -> None:
    n, d, m, k = shape
    x, weight = normal((n, d), seed, torch.float64), normal((m, d), seed + 1, torch.float64)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    columns = torch.randperm(m, generator=torch.Generator().manual_seed(seed + 1))
    whole = saefast.topk_encode(x, weight, k=k)
    by_row = saefast.topk_encode(x[rows], weight, k=k)
    assert_same_bits(by_row.indices, whole.indices[rows])
    assert_same_bits(by_row.values, whole.values[rows])
    by_column = saefast.topk_encode(x, weight[columns], k=k)
    assert_same_bits(columns[by_column.indices], whole.indices)
    assert_same_bits(by_column.values, whole.values)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("n", [1, 5, 200])
@pytest.mark.parametrize("absolute", [False, True])
def test_any_number_of_threads_gives_the_same_bits(
    level: str, n: int, precision: str, absolute: bool
) -> None:
    x, weight = normal((n, 70), 0, torch.float32), normal((1500, 70), 1, torch.float32)
    codes = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        codes.append(saefast.topk_encode(x, weight, k=20, precision=precision, absolute=absolute))
    for code in codes[1:]:
        assert_same_bits(code.indices, codes[0].indices)
        assert_same_bits(code.values, codes[0].values)


@pytest.mark.parametrize("absolute", [False, True])
def test_every_instruction_set_gives_the_same_bits(absolute: bool) -> None:
    x, weight = normal((50, 131), 0, torch.float32), normal((900, 131), 1, torch.float32)
    before = native.level()
    codes = []
    for name in native.usable_levels():
        native.use_level(name)
        codes.append(saefast.topk_encode(x, weight, k=33, absolute=absolute))
    native.use_level(before)
    for code in codes[1:]:
        assert_same_bits(code.indices, codes[0].indices)
        assert_same_bits(code.values, codes[0].values)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-12, 1e12, 1e25, 1e35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_and_huge_values(level: str, size: float, dtype: torch.dtype) -> None:
    """Values whose squares, products or bfloat16 roundings under- or overflow."""
    x = normal((4, 20), 0, dtype) * size
    weight = normal((200, 20), 1, dtype) * (
        size if dtype == torch.float64 else min(size, 1e37 / size)
    )
    for screen in usable_screens():
        code = encode_on_cpu(x, weight, None, None, 5, "exact", screen)
        expected = reference.topk_encode(x.double(), weight.double(), k=5)
        if dtype == torch.float32 and size < 1e-19:  # the scores themselves underflow in float32
            vanished = torch.finfo(dtype).tiny * 20
            assert ((code.values.double() - expected.values).abs() <= vanished).all()
        else:
            assert_same_bits(code.indices, expected.indices)


def test_subnormal_inputs_are_not_flushed(level: str) -> None:
    """bfloat16 products treat it as zero, although every operand is exact in bfloat16."""
    x = torch.tensor([[2.0**-126, 2.0**-127]])
    weight = torch.zeros(100, 2)
    weight[:, 0] = 1 + torch.arange(100) / 128
    weight[40] = torch.tensor([1.0, 8.0])
    for screen in usable_screens():
        code = encode_on_cpu(x, weight * 2.0**100, None, None, 1, "exact", screen)
        assert code.indices.item() == 40


@pytest.mark.parametrize("dtype", FLOATS)
def test_errors_are_at_most_torchs(level: str, dtype: torch.dtype) -> None:
    x, weight = normal((60, 300), 0, dtype), normal((800, 300), 1, dtype)
    code = saefast.topk_encode(x, weight, k=40)
    truth = true_dots(x, weight[code.indices])
    compute = torch.float32 if dtype == torch.bfloat16 else dtype
    torchs = (x.to(compute) @ weight.to(compute).T).gather(1, code.indices).to(dtype)
    assert_no_worse_than_torch(code.values, torchs, truth)


def test_scores_beyond_32_bit_indices() -> None:
    n, m = 17_000, 131_072
    assert n * m > 2**31
    x = small_integers((n, 3), 0, torch.float32)
    weight = small_integers((m, 3), 1, torch.float32)
    weight[m - 1] = 50 * torch.ones(3)
    code = saefast.topk_encode(x, weight, k=2)
    rows = torch.tensor([0, 1, n // 2, n - 2, n - 1])
    expected = reference.topk_encode(x[rows], weight, k=2)
    assert_same_bits(code.indices[rows], expected.indices)
    assert_same_bits(code.values[rows], expected.values)


def test_inputs_beyond_32_bit_indices() -> None:
    n, d = 2**20 + 8, 2056
    assert n * d > 2**31
    x = torch.zeros(n, d, dtype=torch.bfloat16)  # pages that are not written take no memory
    x[-1] = 1
    weight = torch.zeros(3, d, dtype=torch.bfloat16)
    weight[2, 5] = 7
    code = saefast.topk_encode(x, weight, k=1)
    assert code.indices[:-1].count_nonzero() == 0
    assert code.indices[-1].item() == 2
    assert code.values[-1].item() == 7


def test_an_empty_batch_is_encoded() -> None:
    code = saefast.topk_encode(torch.empty(0, 4), torch.randn(6, 4), k=3)
    assert code.values.shape == code.indices.shape == (0, 3)
    assert code.indices.dtype == torch.int64
