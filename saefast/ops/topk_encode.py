"""The k most active latents of each row, without the [n, m] matrix of all pre-activations."""

from typing import Any

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import checks
from saefast.ops.backends import use_reference
from saefast.ops.encode_cpu import Screen, encode_on_cpu
from saefast.ops.encode_gpu import encode_on_gpu
from saefast.ops.screens import best_screen
from saefast.types import SparseCode

PRECISIONS = ("exact", "bf16")


def topk_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    scale: Tensor | None = None,
    precision: str = "exact",
    impl: str = "auto",
) -> SparseCode:
    """The k largest of (x @ weight.T + bias) * scale in every row.

    Args:
        x: [n, d] rows to encode; must be finite.
        weight: [m, d] one row per latent; must be finite.
        bias: [m]; -infinity masks a latent.
        k: how many latents to keep, from 1 to m. No ReLU is applied.
        scale: [m] multiplies the scores, such as the norms of the decoder's rows.
        precision: "exact" gives the top k of scores in the dtype of x (of float32 for bfloat16).
            "bf16" rounds x and weight to bfloat16 and selects by what comes out: faster.
        impl: "auto" chooses by device; "reference", "cpp", "triton" and "cuda" insist on one.

    Returns:
        values [n, k] and int64 indices [n, k]; values descend, equal values stand in order of
        their index. Differentiable in `x`, `weight`, `bias` and `scale`.
    """
    _check(x, weight, bias, scale, k, precision)
    if use_reference(impl, weight, in_cuda=True):
        checks.finite_operands(x, weight, bias, scale)
        return reference.topk_encode(x, weight, bias, k=k, scale=scale, precision=precision)
    return SparseCode(*topk_encode_op(x, weight, bias, scale, k, precision, impl))


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
) -> None:
    checks.floating("x", x, "[n, d]")
    checks.floating("weight", weight, "[m, d]")
    checks.same_kind("weight", weight, "x", x)
    checks.size("x", x, 1, weight.shape[1], "the columns of weight")
    for name, vector in (("bias", bias), ("scale", scale)):
        if vector is not None:
            checks.floating(name, vector, "[m]")
            checks.same_kind("weight", weight, name, vector)
            checks.size(name, vector, 0, weight.shape[0], "one entry per row of weight")
    checks.whole("k", k)
    checks.between("k", k, 1, weight.shape[0], "the rows of weight")
    checks.between("weight.shape[1]", weight.shape[1], 1, 2**31 - 1, "the width")
    checks.between("weight.shape[0]", weight.shape[0], 1, 2**31 - 1, "indices inside are 32 bits")
    checks.one_of("precision", precision, PRECISIONS)


@torch.library.custom_op("saefast::topk_encode", mutates_args=())
def topk_encode_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`topk_encode` after its checks; `impl` says who, of those on the device."""
    checks.finite_operands(x, weight, bias, scale)
    values, indices = reference.topk_encode(x, weight, bias, k=k, scale=scale, precision=precision)
    return values, indices.clone()


@topk_encode_op.register_kernel("cpu")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, scale, k, precision)
    screen = best_screen() if precision == "exact" else Screen("native", "bfloat16")
    code = encode_on_cpu(x, weight, bias, scale, k, precision, screen)
    return code.values, code.indices


@topk_encode_op.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, scale, k, precision)
    code = encode_on_gpu(x, weight, bias, scale, k, precision, impl)
    return code.values, code.indices


@topk_encode_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, scale, *_ = inputs
    ctx.save_for_backward(x, weight, bias, scale, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.saefast
    x, weight, bias, scale, indices = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_scale, *_rest = ctx.needs_input_grad
    m = weight.shape[0]
    ones = x.new_ones(x.shape[0], 1)
    score_grad = grad if scale is None else grad * scale[indices]
    grad_x = ops.sparse_decode(score_grad, indices, weight, None) if needs_x else None
    grad_weight = ops.latent_sum(score_grad, indices, x, m) if needs_weight else None
    grad_bias = ops.latent_sum(score_grad, indices, ones, m).squeeze(1) if needs_bias else None
    grad_scale = None
    if needs_scale:
        unscaled = ops.gather_dots(x, weight, indices)
        if bias is not None:
            unscaled = unscaled + bias[indices]
        grad_scale = ops.latent_sum(grad * unscaled, indices, ones, m).squeeze(1)
    return grad_x, grad_weight, grad_bias, grad_scale, None, None, None


topk_encode_op.register_autograd(_backward, setup_context=_setup)
