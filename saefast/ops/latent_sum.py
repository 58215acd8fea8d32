"""Sums over the tokens on which each latent is active, such as weight gradients of other ops."""

from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.cpu import contiguous, native, threads


@torch.library.custom_op("saefast::latent_sum", mutates_args=())
def latent_sum(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """Sum values[i, c] * rows[i] for each latent, [m, d]; see `reference.latent_sum`.

    On a CPU, rows with a value of zero are not read.

    Returns:
        [m, d] sums.
    """
    checks.in_range("indices", indices, latents)
    return reference.latent_sum(values, indices, rows, latents)


@latent_sum.register_kernel("cpu")
def _(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    _check(values, indices, rows)
    values, indices, rows = contiguous(values), contiguous(indices), contiguous(rows)
    sums = rows.new_empty(latents, rows.shape[1])
    native.latent_sum(values, indices, rows, sums, threads())
    return sums


@latent_sum.register_kernel("cuda")
def _(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    _check(values, indices, rows)
    if not gpu.serves(rows):
        return reference.latent_sum(values, indices, rows, latents)
    sums: Tensor = gpu.launch("codes.latent_sum.latent_sum", values, indices, rows, latents)
    return sums


def _check(values: Tensor, indices: Tensor, rows: Tensor) -> None:
    checks.code(values, indices, rows)
    checks.size("rows", rows, 0, values.shape[0], "the rows of values")


@latent_sum.register_fake
def _(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    return rows.new_empty(latents, rows.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.saefast
    values, indices, rows = ctx.saved_tensors
    needs_values, _, needs_rows, _ = ctx.needs_input_grad
    grad_values = ops.gather_dots(rows, grad, indices) if needs_values else None
    grad_rows = ops.sparse_decode(values, indices, grad, None) if needs_rows else None
    return grad_values, None, grad_rows, None


latent_sum.register_autograd(_backward, setup_context=_setup)


def vector_sum(values: Tensor) -> Tensor:
    """Sum values [n] in float64, in an order that does not depend on the number of threads."""
    return column_sum(values.double()[:, None]).squeeze(0)


def column_sum(rows: Tensor) -> Tensor:
    """Sum rows [n, d] to [d], in an order that does not depend on the number of threads."""
    if gpu.has(rows):
        return rows.sum(0)
    n = rows.shape[0]
    nothing = torch.zeros(n, 1, dtype=torch.int64, device=rows.device)
    total: Tensor = latent_sum(rows.new_ones(n, 1), nothing, rows, 1)
    return total.squeeze(0)
