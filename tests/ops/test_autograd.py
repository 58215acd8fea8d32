"""Gradients by finite differences, schemas by opcheck, and one graph under torch.compile."""

from collections.abc import Callable, Sequence

import pytest
import torch
from helpers.strategies import Shape, normal, seeds, shapes
from hypothesis import given, settings
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import saefast
from saefast import reference
from saefast.ops.decode_residual import decode_residual
from saefast.ops.gather_dots import gather_dots
from saefast.ops.latent_sum import latent_sum
from saefast.ops.latent_update import latent_update
from saefast.ops.sparse_decode import sparse_decode_op
from saefast.ops.threshold_encode import threshold_encode_op
from saefast.ops.topk_encode import topk_encode_op
from saefast.types import SparseCode

SHAPE = Shape(4, 5, 9, 3)
THRESHOLD = normal((SHAPE.m,), 4, torch.float64)
INDICES = torch.tensor([[0, 4, 8], [1, 4, 2], [8, 7, 0], [4, 3, 1]])


def leaf(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw a float64 input that requires a gradient."""
    return normal(shape, seed, torch.float64).requires_grad_()


def encode_values(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Return the differentiable output of an encode."""
    return saefast.topk_encode(x, weight, bias, k=SHAPE.k, scale=scale).values


def threshold_values(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Encode rows with more active latents than the room, and rows with fewer."""
    code = saefast.threshold_encode(x, weight, bias, threshold=THRESHOLD, width=4, scale=scale)
    assert {*(code.counts > 4).tolist(), *(code.counts < 4).tolist()} == {True, False}
    return code.values


n, d, m, k = SHAPE
DIFFERENTIABLE = {
    "topk_encode": (
        encode_values,
        (leaf((n, d), 0), leaf((m, d), 1), leaf((m,), 2), leaf((m,), 3)),
    ),
    "threshold_encode": (
        threshold_values,
        (leaf((n, d), 0), leaf((m, d), 1), leaf((m,), 2), leaf((m,), 3)),
    ),
    "sparse_decode": (
        lambda v, w, b: saefast.sparse_decode(v, INDICES, w, b),
        (leaf((n, k), 0), leaf((m, d), 1), leaf((d,), 2)),
    ),
    "gather_dots": (
        lambda r, w: gather_dots(r, w, INDICES),
        (leaf((n, d), 0), leaf((m, d), 1)),
    ),
    "latent_sum": (
        lambda v, r: latent_sum(v, INDICES, r, m),
        (leaf((n, k), 0), leaf((n, d), 1)),
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_first_and_second_derivatives_pass_gradcheck(name: str) -> None:
    function, inputs = DIFFERENTIABLE[name]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@settings(max_examples=30)
@given(shape=shapes(most_latents=60), seed=seeds)
def test_gradients_equal_the_references(level: str, shape: Shape, seed: int) -> None:
    n, d, m, k = shape

    def gradients(encode: object, decode: object) -> list[Tensor]:
        x, w_enc, w_dec = leaf((n, d), seed), leaf((m, d), seed + 1), leaf((m, d), seed + 2)
        b_enc, scale, b_dec = leaf((m,), seed + 3), leaf((m,), seed + 4), leaf((d,), seed + 5)
        values, indices = encode(x, w_enc, b_enc, k=k, scale=scale)
        out = decode(values.relu(), indices, w_dec, b_dec)
        ((out - x) ** 2).sum().backward()
        return [t.grad for t in (x, w_enc, w_dec, b_enc, scale, b_dec)]

    actual = gradients(saefast.topk_encode, saefast.sparse_decode)
    expected = gradients(reference.topk_encode, reference.sparse_decode)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_masked_latents_have_no_gradient() -> None:
    """With k = m masked latents are selected; their scores are constant."""
    bias = normal((m,), 2, torch.float64)
    bias[::2] = -torch.inf
    inputs = [leaf((n, d), 0), leaf((m, d), 1), bias.requires_grad_(), leaf((m,), 3)]
    weights = normal((n, m), 4, torch.float64)

    def gradients(encode: Callable[..., SparseCode]) -> Sequence[Tensor]:
        x, weight, bias, scale = inputs
        values = encode(x, weight, bias, k=m, scale=scale).values
        return torch.autograd.grad(values, inputs, weights)

    actual, expected = map(gradients, (saefast.topk_encode, reference.topk_encode))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(shape=shapes(most_latents=60), seed=seeds)
def test_gradients_above_a_threshold_equal_the_references(
    level: str, shape: Shape, seed: int
) -> None:
    """The first latent, which is also used as padding, is masked."""
    n, d, m, k = shape
    threshold = normal((m,), seed + 5, torch.float64)
    weights = normal((n, k), seed + 6, torch.float64)

    def gradients(encode: object) -> list[Tensor]:
        x, weight = leaf((n, d), seed), leaf((m, d), seed + 1)
        bias, scale = leaf((m,), seed + 3), leaf((m,), seed + 4)
        with torch.no_grad():
            bias[0] = -torch.inf
        code = encode(x, weight, bias, threshold=threshold, width=k, scale=scale)
        (code.values * weights).sum().backward()
        return [t.grad for t in (x, weight, bias, scale)]

    actual = gradients(saefast.threshold_encode)
    expected = gradients(reference.threshold_encode)
    assert actual[3][0] == 0
    expected[3][0] = 0  # torch's own: zero times infinity
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_inactive_latents_get_no_gradient(level: str) -> None:
    x, weight = torch.randn(6, 20), torch.randn(50, 20, requires_grad=True)
    bias = torch.zeros(50, requires_grad=True)
    code = saefast.topk_encode(x, weight, bias, k=2)
    code.values.sum().backward()
    inactive = torch.ones(50, dtype=torch.bool)
    inactive[code.indices.flatten()] = False
    assert inactive.any()
    assert (weight.grad[inactive] == 0).all()
    assert (bias.grad[inactive] == 0).all()
    assert (weight.grad[~inactive].abs().sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_passes(dtype: torch.dtype) -> None:
    x, weight = normal((n, d), 0, dtype), normal((m, d), 1, dtype)
    bias, scale = normal((m,), 2, dtype), normal((m,), 3, dtype)
    values, rows = normal((n, k), 4, dtype), normal((n, d), 5, dtype)

    def check(op: object, *arguments: object) -> None:
        wanted = [
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in arguments
        ]
        torch.library.opcheck(op, tuple(wanted))

    for precision in ("exact", "bf16"):
        check(topk_encode_op, x, weight, bias, scale, k, precision)
        check(topk_encode_op, x, weight, None, None, k, precision)
        for threshold in (normal((m,), 7, dtype), torch.tensor(0.5, dtype=dtype)):
            operands = (x, weight, bias, scale)
            wanted = tuple(a.clone().requires_grad_() for a in operands)
            torch.library.opcheck(threshold_encode_op, (*wanted, threshold, k, precision))
        torch.library.opcheck(threshold_encode_op, (x, weight, None, None, threshold, k, precision))
    check(sparse_decode_op, values, INDICES, weight, normal((d,), 6, dtype))
    check(gather_dots, rows, weight, INDICES)
    check(latent_sum, values, INDICES, rows, m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_the_training_ops_passes(dtype: torch.dtype) -> None:
    values, rows = normal((n, k), 0, dtype), normal((n, d), 1, dtype)
    weight, bias = normal((m, d), 2, dtype), normal((d,), 3, dtype)
    torch.library.opcheck(decode_residual, (values, INDICES, weight, bias, rows, 0.5))
    state = [normal(s, i, dtype).abs() for i, s in enumerate([(m, d), (m,), (m, d)])]
    moments = [torch.zeros_like(t) for t in state for _ in range(2)]
    rates = torch.tensor([1e-3, 0.5], dtype=torch.float64)
    adam = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "unit_norm": True}
    left = (INDICES, values, values, rows, rows, *state, *moments)
    packed = (None, None, None, "float32")
    extra = (torch.tensor([1, m]), weight[:2].clone(), bias[:2].clone(), weight[2:4].clone())
    for gradients in ((None,) * 4, extra):
        torch.library.opcheck(latent_update, (*left, *packed, *gradients, rates), adam)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
def test_ops_compile_as_one_graph() -> None:
    sae = saefast.SAE(16, 64, k=4, seed=0)
    x = torch.randn(8, 16)

    def loss(x: Tensor) -> Tensor:
        code = saefast.topk_encode(x - sae.b_dec, sae.W_enc, sae.b_enc, k=4)
        out = saefast.sparse_decode(code.values.relu(), code.indices, sae.W_dec, sae.b_dec)
        return ((out - x) ** 2).sum()

    expected = torch.autograd.grad(loss(x), list(sae.parameters()))
    compiled = torch.compile(loss, fullgraph=True)
    actual = torch.autograd.grad(compiled(x), list(sae.parameters()))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    module = torch.compile(sae, fullgraph=True)
    torch.testing.assert_close(module(x), sae(x))

    def energy(x: Tensor) -> Tensor:
        code = saefast.threshold_encode(x, sae.W_enc, sae.b_enc, threshold=0.1, width=16)
        return code.values.square().sum() + code.counts.sum()

    compiled = torch.compile(energy, fullgraph=True)
    torch.testing.assert_close(compiled(x), energy(x))
    weights = [sae.W_enc, sae.b_enc]
    actual = torch.autograd.grad(compiled(x), weights)
    for a, e in zip(actual, torch.autograd.grad(energy(x), weights), strict=True):
        torch.testing.assert_close(a, e)
