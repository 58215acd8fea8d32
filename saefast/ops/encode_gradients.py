"""Backward pass shared by the two encodes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def encode_gradients(
    grad: Tensor,
    indices: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, weight, bias and scale from the gradient of the values.

    `needed` states which of them to compute; the others are None.

    Returns:
        Gradients of x [n, d], weight [m, d], bias [m] and scale [m], or None.
    """
    ops = torch.ops.saefast
    needs_x, needs_weight, needs_bias, needs_scale, *_ = needed
    m = weight.shape[0]
    ones = x.new_ones(x.shape[0], 1)
    if bias is not None:  # the score of a masked latent is constant
        grad = grad.masked_fill((bias == -torch.inf)[indices], 0.0)
    score_grad = grad if scale is None else grad * scale[indices]
    grad_x = ops.sparse_decode(score_grad, indices, weight, None) if needs_x else None
    grad_weight = ops.latent_sum(score_grad, indices, x, m) if needs_weight else None
    grad_bias = ops.latent_sum(score_grad, indices, ones, m).squeeze(1) if needs_bias else None
    grad_scale = None
    if needs_scale:
        unscaled = ops.gather_dots(x, weight, indices)
        if bias is not None:
            # Padding may refer to a masked latent, and zero times infinity is not zero.
            unscaled = unscaled + bias.masked_fill(bias == -torch.inf, 0.0)[indices]
        grad_scale = ops.latent_sum(grad * unscaled, indices, ones, m).squeeze(1)
    return grad_x, grad_weight, grad_bias, grad_scale


def of_active(grad: Tensor, counts: Tensor) -> Tensor:
    """Return `grad` [n, width] with zeros for the padding of each row, which is constant.

    `counts` [n] is the number of entries of each row.
    """
    there = torch.arange(grad.shape[1], device=grad.device) < counts[:, None]
    return torch.where(there, grad, 0.0)
