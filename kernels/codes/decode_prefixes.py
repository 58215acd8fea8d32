"""Compute the errors and gradients of nested prefixes of latents (Matryoshka) in one pass.

A program has one token. It first lists the token's active entries group by group, so that padding
of the code costs nothing and a sum over a group reads that group only. Sums run over the list in
blocks of one size, so the results do not depend on the padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, power_of_two, thread_registers
from .sparse_decode import block_of


@triton.jit
def list_groups(
    values,
    indices,
    group_ends,
    order,
    begins,
    value_grads,
    k,
    groups,
    BLOCK: tl.constexpr,
):
    """List the active entries of one row group by group, and set its value gradients to zero.

    Args:
        values: [k] values of the row.
        indices: [k] int64, its latents.
        group_ends: [groups] int64, ascending ends of the groups of latents.
        order: [k] int32 output, entries; group g has the places begins[g] : begins[g + 1].
        begins: [groups + 1] int32 output.
        value_grads: [k] float32 output, zeros.
        k: entries per row.
        groups: number of groups.
        BLOCK: entries per iteration.
    """
    found = 0
    low = tl.full((), 0, tl.int64)
    for group in range(groups):
        tl.store(begins + group, found)
        high = tl.load(group_ends + group)
        for start in range(0, k, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            latent = tl.load(indices + entry, entry < k, other=-1)
            active = tl.load(values + entry, entry < k, other=0.0) != 0.0
            member = active & (latent >= low) & (latent < high)
            place = found + tl.cumsum(member.to(tl.int32), 0) - 1
            tl.store(order + place, entry, mask=member)
            tl.store(value_grads + entry, tl.zeros((BLOCK,), tl.float32), entry < k)
            found += tl.sum(member.to(tl.int32), axis=0)
        low = high
    tl.store(begins + groups, found)


@triton.jit
def listed_block(values, indices, weight, order, start, end, at, d, BLOCK_K: tl.constexpr):
    """Return the entries order[start : start + BLOCK_K] before `end`.

    Args:
        values: [k] values of the row.
        indices: [k] int64, its latents.
        weight: [m, d] decoder rows.
        order: [k] int32, from `list_groups`.
        start: first place.
        end: end of the places.
        at: [BLOCK_D] columns.
        d: width.
        BLOCK_K: number of places.

    Returns:
        The entries, their values, which places precede `end`, and the entries' decoder rows at the
        columns, [BLOCK_K, BLOCK_D].
    """
    place = start + tl.arange(0, BLOCK_K)
    real = place < end
    entry = tl.load(order + place, real, other=0)
    value = tl.load(values + entry, real, other=0.0)
    latent = tl.load(indices + entry, real, other=0)
    return entry, value, real, block_of(weight, latent, real, at, d)


@triton.jit
def prefix_rows(
    values,
    indices,
    weight,
    bias,
    target,
    group_ends,
    order,
    begins,
    residual,
    value_grads,
    squares,
    factor,
    tokens,
    d,
    k,
    groups,
    BIASED: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one token's errors of all prefixes, their sums, and the gradients of its values.

    Args:
        values: [n, k] float32 values of a code.
        indices: [n, k] int64, latents.
        weight: [m, d] float32 decoder rows.
        bias: [d] float32, if BIASED.
        target: [n, d] float32.
        group_ends: [groups] int64, ascending ends of the groups of latents.
        order: [n, k] int32 scratch.
        begins: [n, groups + 1] int32 scratch.
        residual: [groups, n, d] output: factor * the sum of the errors of prefix g and of all
            longer ones.
        value_grads: [n, k] output.
        squares: [n, groups] output, squared norm of each prefix's error.
        factor: factor of the residual.
        tokens: n.
        d: width.
        k: entries per row.
        groups: number of groups.
        BIASED: whether there is a bias.
        GROUPS: power of two, at least `groups`.
        BLOCK: see `list_groups`.
        BLOCK_K: entries per iteration.
        BLOCK_D: columns per iteration.
    """
    row = tl.program_id(0).to(tl.int64)
    values += row * k
    indices += row * k
    order += row * k
    value_grads += row * k
    begins += row * (groups + 1)
    list_groups(values, indices, group_ends, order, begins, value_grads, k, groups, BLOCK)
    tl.debug_barrier()  # other threads of this program read the lists
    pitch = (row * 0 + tokens) * d  # in 64 bits
    lane = tl.arange(0, GROUPS)
    square = tl.zeros((GROUPS,), tl.float32)
    for i in range(0, d, BLOCK_D):
        at = i + tl.arange(0, BLOCK_D)
        error = -tl.load(target + row * d + at, at < d, other=0.0)
        if BIASED:
            error += tl.load(bias + at, at < d, other=0.0)
        for group in range(groups):
            end = tl.load(begins + group + 1)
            for start in range(tl.load(begins + group), end, BLOCK_K):
                _, value, _, block = listed_block(
                    values, indices, weight, order, start, end, at, d, BLOCK_K
                )
                error += tl.sum(value[:, None] * block, axis=0)
            tl.store(residual + group * pitch + row * d + at, error, at < d)
            square += tl.where(lane == group, tl.sum(error * error, axis=0), 0.0)
        tl.debug_barrier()
        scaled = tl.zeros((BLOCK_D,), tl.float32)
        for past in range(groups):
            group = groups - 1 - past
            here = residual + group * pitch + row * d + at
            scaled += factor * tl.load(here, at < d, other=0.0)
            tl.debug_barrier()  # all threads must have read the error that is overwritten
            tl.store(here, scaled, at < d)
            end = tl.load(begins + group + 1)
            for start in range(tl.load(begins + group), end, BLOCK_K):
                entry, _, real, block = listed_block(
                    values, indices, weight, order, start, end, at, d, BLOCK_K
                )
                so_far = tl.load(value_grads + entry, real, other=0.0)
                more = tl.sum(block * scaled[None, :], axis=1)
                tl.debug_barrier()
                tl.store(value_grads + entry, so_far + more, real)
        tl.debug_barrier()
    tl.store(squares + row * groups + lane, square, lane < groups)


def tiling(groups: int, d: int) -> tuple[int, int, int]:
    """Return entries and columns of a block, and warps; the fastest on an H100."""
    if interpreting():
        return 4, 16, 4
    if groups == 1 and d > 1024:
        return 64, 64, 4
    return 16, 256, 2


def decode_prefixes(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute errors and gradients of nested prefixes, as `reference.decode_prefixes`.

    Args:
        values: [n, k] float32, contiguous, as all tensors here.
        indices: [n, k] int64, latents of the code.
        weight: [m, d] decoder rows.
        bias: [d]; None: no bias.
        target: [n, d] rows to reconstruct.
        group_ends: [g] int64, ascending ends of the groups.
        factor: factor of the residuals.

    Returns:
        The residuals [g, n, d], the gradients of the values [n, k], and the sum of squares of each
        prefix's error, [g] float64.
    """
    n, k = indices.shape
    d, groups = weight.shape[1], len(group_ends)
    residual, value_grads = target.new_empty(groups, n, d), values.new_empty(n, k)
    squares = target.new_empty(n, groups)
    order, begins = (
        torch.empty(n, size, dtype=torch.int32, device=values.device) for size in (k, groups + 1)
    )
    most_k, most_d, warps = tiling(groups, d)
    most = 8 if interpreting() else 256
    if n:
        prefix_rows[(n,)](
            values,
            indices,
            weight,
            weight if bias is None else bias,
            target,
            group_ends,
            order,
            begins,
            residual,
            value_grads,
            squares,
            factor,
            n,
            d,
            k,
            groups,
            BIASED=bias is not None,
            GROUPS=power_of_two(groups),
            BLOCK=most,
            BLOCK_K=most_k,
            BLOCK_D=min(power_of_two(d), most_d),
            num_warps=warps,
            maxnreg=thread_registers(16),
            **LAUNCH,
        )
    return residual, value_grads, squares.sum(0, dtype=torch.float64)
