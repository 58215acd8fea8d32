"""The GPU's topk_encode by absolute value: two encodes, joined."""

import pytest
import torch
from helpers.codes import assert_same_code
from helpers.screened import exact_by_every_screen, failed_rows
from helpers.strategies import Shape, layouts, normal, seeds, small_integers, uneven
from hypothesis import given, settings
from hypothesis import strategies as st

import saefast
from saefast import SparseCode, reference
from saefast.kernels import round_rows
from saefast.kernels.encode import topk_encode
from saefast.ops.encode_cached import CachedEncoder
from saefast.ops.encode_gpu import encode_rounded
from saefast.ops.gpu_screens import GpuScreen


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Draw sizes around the tiles of the interpreter, 16 x 64, with k = 1 and k = m."""
    n, d = draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from([1, 2, 7, 16, 33]))
    m = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65])))
    return Shape(n, d, m, draw(st.one_of(st.just(1), st.integers(1, min(m, 40)))))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mask times a scale of zero
@settings(max_examples=4)
@given(shape=shapes(), seed=seeds, masks=st.sampled_from([0.0, 0.3, 0.9]))
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("scaled", [False, True])
def test_integers_give_the_reference_bit_for_bit(
    screen: str, shape: Shape, seed: int, masks: float, precision: str, scaled: bool
) -> None:
    """Data have ties between the signs, zeros, masked latents, and scales of both signs."""
    n, d, m, k = shape
    x, weight = (small_integers(s, seed + i, torch.float32) for i, s in enumerate([(n, d), (m, d)]))
    bias = small_integers((m,), seed + 2, torch.float32)
    bias[torch.rand(m, generator=torch.Generator().manual_seed(seed)) < masks] = -torch.inf
    scale = small_integers((m,), seed + 3, torch.float32) if scaled else None
    operands = (x, weight, bias if masks else None)
    code = saefast.topk_encode(*operands, k=k, scale=scale, precision=precision, absolute=True)
    expected = reference.topk_encode(
        *operands, k=k, scale=scale, precision=precision, absolute=True
    )
    assert_same_code(code, expected)


@settings(max_examples=3)
@given(shape=shapes(), seed=seeds, layout=layouts)
@pytest.mark.parametrize("data", [normal, uneven])
def test_exact_is_the_top_k_of_full_precision_for_every_screen(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, seed: int, layout: str, data: object
) -> None:
    operands, code = exact_by_every_screen(monkeypatch, shape, seed, layout, data, absolute=True)
    # Scores have the bits of the encode by value, regardless of their sign.
    n, _, m, k = shape
    x, weight, bias, scale = operands
    everything = saefast.topk_encode(x, weight, bias, k=m, scale=scale)
    scores = torch.zeros(n, m).scatter(1, everything.indices, everything.values)
    identity = reference.topk_encode(scores, torch.eye(m), k=k, absolute=True)
    assert_same_code(code, identity)


def test_the_screen_decides_ordinary_rows(screen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = failed_rows(monkeypatch)
    x, weight = normal((3, 40), 0, torch.float32), normal((300, 40), 1, torch.float32)
    saefast.topk_encode(x, weight, k=5, absolute=True)
    assert failed == [0, 0]


def test_rounding_that_all_points_one_way(screen: str) -> None:
    """The best score is negative, and loses most to bfloat16; its rivals lose nothing."""
    d = 40
    best = torch.full((1, d), 1 + 2.0**-8 - 2.0**-14)
    weight = torch.zeros(100, d)
    weight[99] = -best
    bias = torch.full((100,), float(best.double().sum()) - 2.0**-12)
    bias[99] = 0
    x = torch.ones(1, d)
    assert saefast.topk_encode(x, weight, bias, k=1, absolute=True).indices.item() == 99
    code = saefast.topk_encode(x, weight, bias, k=1, precision="bf16", absolute=True)
    assert code.indices.item() != 99


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scores_that_overflow_are_ranked_as_by_the_reference() -> None:
    """Infinity and NaN first, -infinity last, by index like the masked latents."""
    weight = torch.ones(8, 200)
    weight[1] = -1e30
    weight[3] = 1e30 * (-1.0) ** torch.arange(200)  # infinity minus infinity
    weight[4] = 1e30
    weight[5] *= -3
    bias = torch.zeros(8)
    bias[[0, 2]] = -torch.inf
    x = torch.full((1, 200), 1e30)
    for k in range(1, 9):
        code = saefast.topk_encode(x, weight, bias, k=k, absolute=True)
        expected = reference.topk_encode(x, weight, bias, k=k, absolute=True)
        assert code.indices.tolist() == expected.indices.tolist()
        torch.testing.assert_close(code.values, expected.values, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("exact", [True, False])
def test_a_weight_with_nan_gives_nan_at_the_first_latents(exact: bool) -> None:
    x, weight = normal((3, 12), 0, torch.float32), normal((90, 12), 1, torch.float32)
    weight[70, 3] = torch.nan
    screen = GpuScreen("fused", "bfloat16")
    left = round_rows.rounded_rows(x, screen.product)
    right = round_rows.rounded_columns(weight, screen.product)
    code = encode_rounded(
        x, weight, None, None, 6, exact, screen, left, right, impl="triton", absolute=True
    )
    assert code.values.isnan().all()
    assert (code.indices == torch.arange(6)).all()


def test_a_packed_weight_gives_the_same_code_and_gradients() -> None:
    leaves = [
        normal(shape, number, torch.float32).requires_grad_()
        for number, shape in enumerate([(5, 12), (40, 12), (40,), (40,)])
    ]
    x, weight, bias, scale = leaves
    encoder = CachedEncoder()
    factors = normal((5, 6), 7, torch.float32)
    results = []
    for encode in (saefast.topk_encode, encoder.topk, encoder.topk):
        code = encode(x, weight, bias, k=6, scale=scale, absolute=True)
        gradients = torch.autograd.grad((code.values * factors).sum(), leaves)
        results.append((SparseCode(code.values.detach(), code.indices), gradients))
    (first, wanted), *rest = results
    expected = reference.topk_encode(x, weight, bias, k=6, scale=scale, absolute=True)
    assert (first.indices == expected.indices).all()
    torch.testing.assert_close(first.values, expected.values.detach())
    dense = torch.autograd.grad((expected.values * factors).sum(), leaves)
    torch.testing.assert_close(wanted, dense)
    for code, gradients in rest:
        assert_same_code(code, first)
        torch.testing.assert_close(gradients, wanted, rtol=0, atol=0)


def test_k_beyond_the_kernels_is_computed_by_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topk_encode, "MOST_KEPT", 4)
    x, weight = normal((7, 9), 0, torch.float32), normal((30, 9), 1, torch.float32)
    expected = reference.topk_encode(x, weight, k=5, absolute=True)
    assert_same_code(saefast.topk_encode(x, weight, k=5, absolute=True), expected)
