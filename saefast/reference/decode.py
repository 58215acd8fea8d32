"""Decodes, and the products and sums in the gradients of encodes and decodes."""

import torch
from torch import Tensor

from saefast.reference.precision import computed


def sparse_decode(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Decode a sparse code: sum_c values[:, c] * weight[indices[:, c]] + bias.

    Args:
        values: [n, k] values of the code.
        indices: [n, k] int64, rows of `weight`.
        weight: [m, d] decoder rows.
        bias: [d]; None adds nothing.

    Returns:
        [n, d] in the dtype of `values`.
    """
    out = torch.einsum("nk,nkd->nd", computed(values), computed(weight)[indices])
    if bias is not None:
        out = out + computed(bias)
    return out.to(values.dtype)


def gather_dots(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Compute the dot products rows[i] . weight[indices[i, c]].

    Args:
        rows: [n, d] first factors.
        weight: [m, d] second factors.
        indices: [n, k] int64, rows of `weight`.

    Returns:
        [n, k] in the dtype of `rows`.
    """
    dots = torch.einsum("nd,nkd->nk", computed(rows), computed(weight)[indices])
    return dots.to(rows.dtype)


def latent_sum(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """Sum values[i, c] * rows[i] for each latent over the entries with indices[i, c] = latent.

    Args:
        values: [n, k] values of a code.
        indices: [n, k] int64, latents.
        rows: [n, d] rows.
        latents: number of latents m.

    Returns:
        [m, d] in the dtype of `rows`.
    """
    terms = computed(values)[..., None] * computed(rows)[:, None, :]
    sums = terms.new_zeros(latents, rows.shape[1])
    return sums.index_add(0, indices.flatten(), terms.flatten(0, 1)).to(rows.dtype)


def decode_residual(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode a code and compute the error, the gradients of values and the squared error.

    Args:
        values: [n, k] values of the code.
        indices: [n, k] int64, rows of `weight`.
        weight: [m, d] decoder rows.
        bias: [d]; None adds nothing.
        target: [n, d] rows to reconstruct.
        factor: factor of the residual.

    Returns:
        The residual factor * (decoded - target) [n, d]; its dot product with the decoder row of
        each value that is not zero, zero for other values, [n, k]; and the sum of squares of
        decoded - target, [] float64.
    """
    error = sparse_decode(values, indices, weight, bias) - target
    residual = error * factor
    value_grads = torch.where(values != 0, gather_dots(residual, weight, indices), 0.0)
    return residual, value_grads, error.double().square().sum()


def decode_prefixes(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the errors of the reconstructions by nested prefixes of the latents (Matryoshka).

    Prefix i consists of the latents below group_ends[i]; group i consists of the latents of prefix
    i that are not in prefix i - 1. The error of a prefix is its reconstruction minus the target.

    Args:
        values: [n, k] values of the code.
        indices: [n, k] int64, rows of `weight`.
        weight: [m, d] decoder rows.
        bias: [d]; None adds nothing.
        target: [n, d] rows to reconstruct.
        group_ends: [g] int64, ascending.
        factor: factor of the residuals.

    Returns:
        For each group, factor * the sum of the errors of all prefixes that contain it, [g, n, d],
        from which its latents learn; for each value that is not zero the dot product of its decoder
        row with that sum, zero for other values, [n, k]; and the sum of squares of each prefix's
        error, [g] float64.
    """
    active = values != 0
    group = torch.searchsorted(group_ends, indices.contiguous(), right=True)
    errors = torch.stack(
        [
            sparse_decode(values * (active & (group <= g)), indices, weight, bias) - target
            for g in range(len(group_ends))
        ]
    )
    residual = errors.flip(0).cumsum(0).flip(0) * factor
    value_grads = torch.zeros_like(values)
    for g, rows in enumerate(residual):
        dots = gather_dots(rows, weight, indices)
        value_grads = torch.where(active & (group == g), dots, value_grads)
    return residual, value_grads, errors.double().square().sum((1, 2))
