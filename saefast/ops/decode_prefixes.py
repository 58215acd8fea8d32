"""Decoder of a training step with nested prefixes of latents: errors and value gradients."""

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.decode_residual import check_decode
from saefast.ops.gather_dots import gather_dots
from saefast.ops.latent_sum import column_sum
from saefast.ops.sparse_decode import sparse_decode_op


@torch.library.custom_op("saefast::decode_prefixes", mutates_args=())
def decode_prefixes(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.decode_prefixes`; not differentiable, since only the fused step uses it."""
    _check(values, indices, weight, bias, target, group_ends)
    checks.in_range("indices", indices, weight.shape[0])
    return reference.decode_prefixes(values, indices, weight, bias, target, group_ends, factor)


@decode_prefixes.register_kernel("cpu")
def _(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Use the sparse ops, one group at a time; bitwise equal for any number of threads."""
    _check(values, indices, weight, bias, target, group_ends)
    groups = len(group_ends)
    group = torch.searchsorted(group_ends, indices.contiguous(), right=True)
    active = values != 0
    members = [(group == g) & active for g in range(groups)]
    errors, error = [], -target if bias is None else bias - target
    for member in members:
        error = error + sparse_decode_op(values * member, indices, weight, None)
        errors.append(error)
    squares = torch.stack([column_sum(error.square()).double().sum() for error in errors])
    residual = torch.stack(errors).mul_(factor)
    for g in range(groups - 2, -1, -1):
        residual[g] += residual[g + 1]
    value_grads = torch.zeros_like(values)
    for rows, member in zip(residual, members, strict=True):
        # Entries of other groups read row 0, which stays in cache and costs little.
        dots = gather_dots(rows, weight, torch.where(member, indices, 0))
        value_grads = torch.where(member, dots, value_grads)
    return residual, value_grads, squares


@decode_prefixes.register_kernel("cuda")
def _(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(values, indices, weight, bias, target, group_ends)
    if not gpu.serves(weight):
        return reference.decode_prefixes(values, indices, weight, bias, target, group_ends, factor)
    result: tuple[Tensor, Tensor, Tensor] = gpu.launch(
        "codes.decode_prefixes.decode_prefixes",
        values,
        indices,
        weight,
        bias,
        target,
        group_ends,
        factor,
    )
    return result


def _check(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
) -> None:
    check_decode(values, indices, weight, bias, target)
    checks.indices("group_ends", group_ends, "[g]")
    checks.same_device("weight", weight, "group_ends", group_ends)


@decode_prefixes.register_fake
def _(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = len(group_ends)
    return (
        target.new_empty(groups, *target.shape),
        torch.empty_like(values, memory_format=torch.contiguous_format),
        target.new_empty(groups, dtype=torch.float64),
    )
