"""topk_encode by absolute value: selection, exactness, ties, masks, determinism, gradients."""

import pytest
import torch
from helpers.codes import assert_same_code, assert_top_k
from helpers.strategies import Shape, normal, seeds, shapes, small_integers
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from torch import Tensor

import saefast
from saefast import SparseCode, reference
from saefast.ops.encode_cached import CachedEncoder
from saefast.ops.encode_cpu import encode_on_cpu
from saefast.ops.screens import usable_screens


def dense(scores: Tensor, k: int) -> SparseCode:
    """Select by the definition, row by row: ties of absolute values by ascending index."""
    rows = [sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))[:k] for row in scores.tolist()]
    order = torch.tensor(rows, dtype=torch.int64).view(len(scores), k)
    return SparseCode(scores.gather(1, order), order)


@given(shape=shapes(), seed=seeds)
def test_the_reference_is_the_definition(shape: Shape, seed: int) -> None:
    """Integers have ties between the signs, and zeros, in every row."""
    scores = small_integers((shape.n, shape.m), seed, torch.float32)
    code = reference.topk_encode(scores, torch.eye(shape.m), k=shape.k, absolute=True)
    assert_same_code(code, dense(scores, shape.k))


@given(seed=seeds)
def test_near_ties_of_both_signs_are_distinguished(level: str, seed: int) -> None:
    """Hundreds of rows that no screen can distinguish but by their sign, in random order."""
    m, d, k = 700, 96, 50
    random = torch.Generator().manual_seed(seed)
    base = normal((1, d), seed, torch.float32)
    steps = torch.randperm(m, generator=random).float()
    signs = torch.randint(0, 2, (m,), generator=random).float() * 2 - 1
    weight = base * (signs * (1 + steps * 2.0**-19))[:, None]
    x = base * 3
    truth = (x.double() @ weight.double().T).abs().topk(k).indices
    for screen in usable_screens():
        code = encode_on_cpu(x, weight, None, None, k, "exact", screen, absolute=True)
        assert_top_k(code, x, weight, None, None, absolute=True)
        assert set(code.indices[0].tolist()) == set(truth[0].tolist())
        assert_same_bits(code.values.sign(), signs[code.indices])


@given(seed=seeds)
def test_scores_that_differ_by_the_rounding_of_bias_and_scale_alone(level: str, seed: int) -> None:
    """The first k of all latents, for which nothing can be left out, are the k largest."""
    m, k = 400, 30
    random = torch.Generator().manual_seed(seed)
    x, weight = normal((1, 8), seed, torch.float32), normal((1, 8), seed + 2, torch.float32) / 8
    scale = (1 + torch.rand(m, generator=random)) * (torch.rand(m, generator=random) - 0.5).sign()
    bias = (1000 + 1e-3 * torch.rand(m, generator=random)) / scale.abs() - x @ weight[0]
    weight = weight.repeat(m, 1)
    for screen in usable_screens():
        of_all = encode_on_cpu(x, weight, bias, scale, m, "exact", screen, absolute=True)
        best = encode_on_cpu(x, weight, bias, scale, k, "exact", screen, absolute=True)
        assert_same_code(best, SparseCode(*(part[:, :k] for part in of_all)))


@settings(max_examples=25)
@given(shape=shapes(), seed=seeds)
def test_bf16_precision_rounds_the_operands_and_nothing_else(
    level: str, shape: Shape, seed: int
) -> None:
    n, d, m, k = shape
    x, weight = normal((n, d), seed, torch.float32), normal((m, d), seed + 1, torch.float32)
    bias = normal((m,), seed + 2, torch.float32)
    code = saefast.topk_encode(x, weight, bias, k=k, precision="bf16", absolute=True)
    rounded = x.bfloat16().float(), weight.bfloat16().float(), bias
    assert_top_k(code, *rounded, None, absolute=True)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_lists_of_ties_widen_and_truncate_nothing(level: str, k: int) -> None:
    m = 5000
    x, weight = normal((3, 17), 0, torch.float32), normal((1, 17), 1, torch.float32)
    weight = weight.repeat(m, 1)
    weight[::2] *= -1
    weight[m - 1] *= 2
    for screen in usable_screens():
        code = encode_on_cpu(x, weight, None, None, k, "exact", screen, absolute=True)
        first = torch.tensor([[m - 1, *range(k - 1)]]).expand(3, k)
        assert_same_bits(code.indices, first)


def test_a_row_of_zeros_and_scores_of_nan(level: str) -> None:
    """Zeros come last, by index; NaN, from sums that overflow, comes first of all."""
    weight = torch.zeros(6, 200)
    weight[4] = -1.0
    over = weight.clone()
    over[3] = 1e30 * (-1.0) ** torch.arange(200)  # infinity minus infinity
    for screen in usable_screens():
        x = torch.ones(1, 200)
        code = encode_on_cpu(x, weight, None, None, 3, "exact", screen, absolute=True)
        assert_same_code(
            code, SparseCode(torch.tensor([[-200.0, 0, 0]]), torch.tensor([[4, 0, 1]]))
        )
        code = encode_on_cpu(1e30 * x, over, None, None, 2, "exact", screen, absolute=True)
        assert code.indices.tolist() == [[3, 4]]
        assert code.values[0, 0].isnan()


@pytest.mark.parametrize("screen", ["native-float32", "torch-float32"])
def test_a_packed_weight_gives_the_same_code_and_gradients(
    screen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients equal those of dense torch, in which the order of selection has none."""
    monkeypatch.setenv("SAEFAST_SCREEN", screen)
    n, d, m, k = 9, 12, 40, 5
    leaves = [
        normal(shape, number, torch.float64).requires_grad_()
        for number, shape in enumerate([(n, d), (m, d), (m,), (m,)])
    ]
    x, weight, bias, scale = leaves
    encoder = CachedEncoder()
    scores = (x @ weight.T + bias) * scale
    expected = dense(scores.detach(), k)
    factors = normal((n, k), 7, torch.float64)
    wanted = torch.autograd.grad((scores.gather(1, expected.indices) * factors).sum(), leaves)
    for encode in (saefast.topk_encode, encoder.topk, encoder.topk):
        code = encode(x, weight, bias, k=k, scale=scale, absolute=True)
        assert_same_bits(code.indices, expected.indices)
        found = torch.autograd.grad((code.values * factors).sum(), leaves)
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        assert_same_code(
            encoder.topk(x, weight, bias, k=k, scale=scale, absolute=True),
            SparseCode(code.values.detach(), code.indices),
        )
