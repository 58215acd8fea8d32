"""Decoder of a training step: error and value gradients in one read of the active rows."""

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.cpu import contiguous, native, threads


@torch.library.custom_op("saefast::decode_residual", mutates_args=())
def decode_residual(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.decode_residual`; not differentiable, since only the fused step uses it."""
    checks.in_range("indices", indices, weight.shape[0])
    return reference.decode_residual(values, indices, weight, bias, target, factor)


@decode_residual.register_kernel("cpu")
def _(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_decode(values, indices, weight, bias, target)
    values, indices, weight = contiguous(values), contiguous(indices), contiguous(weight)
    target = contiguous(target)
    bias = bias if bias is None else contiguous(bias)
    residual, value_grads = target.new_empty(target.shape), values.new_empty(values.shape)
    squares = native.decode_residual(
        values, indices, weight, bias, target, factor, residual, value_grads, threads()
    )
    return residual, value_grads, torch.tensor(squares, dtype=torch.float64, device="cpu")


@decode_residual.register_kernel("cuda")
def _(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_decode(values, indices, weight, bias, target)
    if not gpu.serves(weight):
        return reference.decode_residual(values, indices, weight, bias, target, factor)
    result: tuple[Tensor, Tensor, Tensor] = gpu.launch(
        "codes.sparse_decode.decode_residual", values, indices, weight, bias, target, factor
    )
    return result


def check_decode(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> None:
    """Raise unless a code, its decoder and the target [n, d] of a training step are compatible."""
    checks.code(values, indices, weight)
    checks.same_kind("weight", weight, "target", target)
    checks.shape("target", target, (values.shape[0], weight.shape[1]))
    if bias is not None:
        checks.same_kind("weight", weight, "bias", bias)
        checks.shape("bias", bias, (weight.shape[1],))
    checks.at_least_float32("weight", weight)


@decode_residual.register_fake
def _(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(target, memory_format=torch.contiguous_format),
        torch.empty_like(values, memory_format=torch.contiguous_format),
        target.new_empty((), dtype=torch.float64),
    )
