"""Encode the k largest pre-activations of each row, without the matrix of all of them."""

from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.backends import use_reference
from saefast.ops.encode_cpu import encode_on_cpu
from saefast.ops.encode_gpu import encode_on_gpu
from saefast.ops.encode_gradients import encode_gradients
from saefast.ops.immediate import immediate, refuse_transforms
from saefast.ops.screens import screen_at
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
    absolute: bool = False,
    impl: str = "auto",
) -> SparseCode:
    """Select the k largest scores (x @ weight.T + bias) * scale of every row.

    Args:
        x: [n, d] rows to encode; must be finite.
        weight: [m, d] one row per latent; must be finite.
        bias: [m]; -infinity masks a latent. None adds nothing.
        k: number of latents to select per row, from 1 to m. No ReLU is applied.
        scale: [m] factors of the scores, such as the norms of decoder rows. None: ones.
        precision: "exact" selects by scores in the dtype of x (float32 for bfloat16). "bf16" rounds
            x and weight to bfloat16 and selects by the resulting scores, which is faster.
        absolute: whether scores are ranked by their absolute value; they keep their sign. A GPU
            encodes twice, the largest scores and the smallest.
        impl: "auto" chooses by device; "reference", "cpp", "triton" and "cuda" select an
            implementation.

    Returns:
        Values [n, k] and int64 indices [n, k], by descending value or absolute value, equal ones
        by ascending index. Differentiable in `x`, `weight`, `bias` and `scale`.
    """
    check_topk_encode(x, weight, bias, scale, k, precision)
    if use_reference(impl, weight, in_cuda=True):
        checks.finite_operands(x, weight, bias, scale)
        return reference.topk_encode(
            x, weight, bias, k=k, scale=scale, precision=precision, absolute=absolute
        )
    if immediate(x, weight, bias, scale):
        return _encode(x, weight, bias, scale, k, precision, impl, absolute)
    refuse_transforms(x, weight, bias, scale)
    return SparseCode(*topk_encode_op(x, weight, bias, scale, k, precision, impl, absolute))


def check_topk_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
) -> None:
    """Raise TypeError or ValueError if the arguments of `topk_encode` are incompatible."""
    checks.encode_operands(x, weight, bias, scale)
    checks.whole("k", k)
    checks.between("k", k, 1, weight.shape[0], "the rows of weight")
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
    absolute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `topk_encode` of arguments with checked shapes; `impl` selects a GPU kernel."""
    checks.finite_operands(x, weight, bias, scale)
    values, indices = reference.topk_encode(
        x, weight, bias, k=k, scale=scale, precision=precision, absolute=absolute
    )
    return values, indices.clone()


@topk_encode_op.register_kernel(("cpu", "cuda"))
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
    absolute: bool = False,
) -> tuple[Tensor, Tensor]:
    check_topk_encode(x, weight, bias, scale, k, precision)
    code = _encode(x, weight, bias, scale, k, precision, impl, absolute)
    return code.values, code.indices


def _encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str,
    absolute: bool,
) -> SparseCode:
    if gpu.has(weight):
        return encode_on_gpu(x, weight, bias, scale, k, precision, impl, absolute=absolute)
    screen = screen_at(precision)
    return encode_on_cpu(x, weight, bias, scale, k, precision, screen, absolute=absolute)


@topk_encode_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    precision: str,
    impl: str = "auto",
    absolute: bool = False,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, scale, *_ = inputs
    ctx.save_for_backward(x, weight, bias, scale, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, scale, indices = ctx.saved_tensors
    needed = ctx.needs_input_grad
    gradients = encode_gradients(grad, indices, x, weight, bias, scale, needed)
    return (*gradients, None, None, None, None)


topk_encode_op.register_autograd(_backward, setup_context=_setup)
