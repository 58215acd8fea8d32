"""Dot products of rows with the weight rows selected by a sparse code."""

from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.cpu import contiguous, native, threads


@torch.library.custom_op("saefast::gather_dots", mutates_args=())
def gather_dots(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Compute rows[i] . weight[indices[i, c]], [n, k]; see `reference.gather_dots`."""
    checks.in_range("indices", indices, weight.shape[0])
    return reference.gather_dots(rows, weight, indices)


@gather_dots.register_kernel("cpu")
def _(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    _check(rows, weight, indices)
    rows, weight, indices = contiguous(rows), contiguous(weight), contiguous(indices)
    out = rows.new_empty(indices.shape)
    native.gather_dots(rows, weight, indices, out, threads())
    return out


@gather_dots.register_kernel("cuda")
def _(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    _check(rows, weight, indices)
    if not gpu.serves(weight, gpu.WITH_FLOAT64):
        return gpu.in_gathered_slices(
            lambda some, theirs: reference.gather_dots(some, weight, theirs), rows, indices, weight
        )
    out: Tensor = gpu.launch("codes.sparse_decode.gather_dots", rows, weight, indices)
    return out


def _check(rows: Tensor, weight: Tensor, indices: Tensor) -> None:
    checks.floating("rows", rows, "[n, d]")
    checks.floating("weight", weight, "[m, d]")
    checks.indices("indices", indices, "[n, k]")
    checks.same_kind("weight", weight, "rows", rows)
    checks.same_device("weight", weight, "indices", indices)
    checks.size("rows", rows, 1, weight.shape[1], "the columns of weight")
    checks.size("indices", indices, 0, rows.shape[0], "the rows of rows")


@gather_dots.register_fake
def _(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    return rows.new_empty(indices.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.saefast
    rows, weight, indices = ctx.saved_tensors
    needs_rows, needs_weight, _ = ctx.needs_input_grad
    grad_rows = ops.sparse_decode(grad, indices, weight, None) if needs_rows else None
    grad_weight = ops.latent_sum(grad, indices, rows, weight.shape[0]) if needs_weight else None
    return grad_rows, grad_weight, None


gather_dots.register_autograd(_backward, setup_context=_setup)
