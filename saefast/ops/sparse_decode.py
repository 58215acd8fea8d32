"""Sparse decode: for each token the sum of its k active decoder rows, weighted by their values."""

from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.backends import use_reference
from saefast.ops.cpu import contiguous, native, threads
from saefast.ops.immediate import immediate, refuse_transforms
from saefast.ops.index_range import check_in_range


def sparse_decode(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Reconstruct n rows from their active latents, without a dense [n, m] code.

    Args:
        values: [n, k] values of the active latents. On a CPU the row of a latent with a value of
            zero is not read: it costs nothing, and even infinity in it has no effect.
        indices: [n, k] int64, indices of the active latents.
        weight: [m, d] one row per latent.
        bias: [d] added to every row; None adds nothing.
        impl: "auto" chooses by device; "reference", "cpp" and "triton" select an implementation.

    Returns:
        [n, d], differentiable in `values`, `weight` and `bias`.
    """
    _check(values, indices, weight, bias)
    if use_reference(impl, weight):
        checks.in_range("indices", indices, weight.shape[0])
        return reference.sparse_decode(values, indices, weight, bias)
    if immediate(values, indices, weight, bias):
        return _decode(values, indices, weight, bias)
    refuse_transforms(values, weight, bias)
    out: Tensor = sparse_decode_op(values, indices, weight, bias)
    return out


def _check(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    checks.code(values, indices, weight)
    if bias is not None:
        checks.floating("bias", bias, "[d]")
        checks.same_kind("weight", weight, "bias", bias)
        checks.size("bias", bias, 0, weight.shape[1], "one entry per column of weight")


@torch.library.custom_op("saefast::sparse_decode", mutates_args=())
def sparse_decode_op(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Compute `sparse_decode` of checked arguments."""
    checks.in_range("indices", indices, weight.shape[0])
    return reference.sparse_decode(values, indices, weight, bias)


@sparse_decode_op.register_kernel(("cpu", "cuda"))
def _(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(values, indices, weight, bias)
    return _decode(values, indices, weight, bias)


def _decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    on = _on_gpu if gpu.has(weight) else _on_cpu
    return on(values, indices, weight, bias)


def _on_cpu(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    values, indices, weight = contiguous(values), contiguous(indices), contiguous(weight)
    bias = bias if bias is None else contiguous(bias)
    out = weight.new_empty(len(values), weight.shape[1])
    native.sparse_decode(values, indices, weight, bias, out, threads())
    return out


def _on_gpu(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_in_range("indices", indices, weight.shape[0])
    if not gpu.serves(weight, gpu.WITH_FLOAT64):
        return gpu.in_gathered_slices(
            lambda some, theirs: reference.sparse_decode(some, theirs, weight, bias),
            *(values, indices, weight),
        )
    out: Tensor = gpu.launch("codes.sparse_decode.sparse_decode", values, indices, weight, bias)
    return out


@sparse_decode_op.register_fake
def _(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_empty(values.shape[0], weight.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.saefast
    values, indices, weight = ctx.saved_tensors
    needs_values, _, needs_weight, needs_bias = ctx.needs_input_grad
    grad_values = ops.gather_dots(grad, weight, indices) if needs_values else None
    grad_weight = ops.latent_sum(values, indices, grad, weight.shape[0]) if needs_weight else None
    grad_bias = grad.sum(0) if needs_bias else None
    return grad_values, None, grad_weight, grad_bias


sparse_decode_op.register_autograd(_backward, setup_context=_setup)
