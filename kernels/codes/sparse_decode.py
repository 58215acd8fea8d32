"""Decode sparse codes, and compute the products of rows with the decoder rows of a code.

Kernels loop over entries and width in blocks, so any k and d are possible. Entries whose index is
out of range count as rows of zeros; nothing out of range is read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, power_of_two

_WIDEST_CODE = 128
"""largest k for which a block of all active rows stays in registers between its two uses"""


@triton.jit
def entries_of(
    values,
    indices,
    row,
    start,
    k,
    m,
    BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr = tl.float32,
):
    """Return values and latents of a row's entries start : start + BLOCK_K, and which are real.

    Args:
        values: [n, k] values of a code.
        indices: [n, k] int64, latents.
        row: int64, the row.
        start: first entry.
        k: entries per row.
        m: number of latents; entries with other indices are not real.
        BLOCK_K: number of entries.
        WIDE: dtype of the values.
    """
    entry = start + tl.arange(0, BLOCK_K)
    real = entry < k
    latent = tl.load(indices + row * k + entry, real, other=-1)
    value = tl.load(values + row * k + entry, real, other=0.0).to(WIDE)
    return value, latent, (latent >= 0) & (latent < m)


@triton.jit
def block_of(weight, latent, real, at, d, WIDE: tl.constexpr = tl.float32):
    """Return weight[latent, at] in the dtype WIDE, zero where either is out of range.

    Args:
        weight: [m, d] rows.
        latent: [BLOCK_K] int64 rows.
        real: [BLOCK_K] whether each row is in range.
        at: [BLOCK_D] columns.
        d: width.
        WIDE: dtype of the result [BLOCK_K, BLOCK_D].
    """
    inside = real[:, None] & (at < d)[None, :]
    place = weight + tl.where(real, latent, 0)[:, None] * d + at[None, :]
    return tl.load(place, inside, other=0.0).to(WIDE)


@triton.jit
def decode_rows(
    values,
    indices,
    weight,
    bias,
    out,
    m,
    d,
    k,
    BIASED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute out[row] = sum_c values[row, c] * weight[indices[row, c]] + bias for BLOCK_D columns.

    A program has one row and one block of columns.

    Args:
        values: [n, k] values of a code.
        indices: [n, k] int64, latents.
        weight: [m, d] decoder rows.
        bias: [d], if BIASED.
        out: [n, d] output.
        m: number of latents.
        d: width.
        k: entries per row.
        BIASED: whether there is a bias.
        BLOCK_K: entries per iteration.
        BLOCK_D: columns per program.
        WIDE: dtype of products and sums.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_D,), WIDE)
    for start in range(0, k, BLOCK_K):
        value, latent, real = entries_of(values, indices, row, start, k, m, BLOCK_K, WIDE)
        sums += tl.sum(value[:, None] * block_of(weight, latent, real, at, d, WIDE), axis=0)
    if BIASED:
        sums += tl.load(bias + at, at < d, other=0.0).to(WIDE)
    tl.store(out + row * d + at, sums.to(out.dtype.element_ty), at < d)


@triton.jit
def dot_rows(
    rows,
    weight,
    indices,
    out,
    m,
    d,
    k,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute out[row, c] = rows[row] . weight[indices[row, c]] for BLOCK_K entries of one row.

    The order of a sum follows from d and the blocks only, so the product of two rows has the same
    bits if they are exchanged between `rows` and `weight`.

    Args:
        rows: [n, d] rows.
        weight: [m, d] rows.
        indices: [n, k] int64, rows of the weight.
        out: [n, k] output, 0 for indices out of range.
        m: rows of the weight.
        d: width.
        k: entries per row.
        BLOCK_K: entries per program.
        BLOCK_D: elements of the width per iteration.
        WIDE: dtype of products and sums.
    """
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    latent = tl.load(indices + row * k + entry, entry < k, other=-1)
    real = (latent >= 0) & (latent < m)
    products = tl.zeros((BLOCK_K, BLOCK_D), WIDE)
    for i in range(0, d, BLOCK_D):
        at = i + tl.arange(0, BLOCK_D)
        left = tl.load(rows + row * d + at, at < d, other=0.0).to(WIDE)
        products += left[None, :] * block_of(weight, latent, real, at, d, WIDE)
    dots = tl.sum(products, axis=1)
    tl.store(out + row * k + entry, dots.to(out.dtype.element_ty), entry < k)


@triton.jit
def residual_rows(
    values,
    indices,
    weight,
    bias,
    target,
    residual,
    value_grads,
    squares,
    factor,
    m,
    d,
    k,
    BIASED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one token's scaled error, its products with the active rows, and its squared norm.

    If all entries of a token fit one block, a piece of the active rows is read once and serves both
    the sum and the products. Otherwise it is read again, while it is in a cache.

    Args:
        values: [n, k] float32 values of a code.
        indices: [n, k] int64, latents.
        weight: [m, d] float32 decoder rows.
        bias: [d] float32, if BIASED.
        target: [n, d] float32.
        residual: [n, d] output, factor * (decoded - target).
        value_grads: [n, k] output, residual . weight row for values that are not zero, otherwise 0.
        squares: [n] output, squared norm of decoded - target.
        factor: factor of the error.
        m: number of latents.
        d: width.
        k: entries per row.
        BIASED: whether there is a bias.
        ONE_BLOCK: whether k <= BLOCK_K.
        BLOCK_K: entries per iteration.
        BLOCK_D: columns per iteration.
    """
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, BLOCK_K)
    grads = tl.zeros((BLOCK_K,), tl.float32)
    square = tl.zeros((BLOCK_D,), tl.float32)
    if ONE_BLOCK:
        value, latent, real = entries_of(values, indices, row, 0, k, m, BLOCK_K)
    for i in range(0, d, BLOCK_D):
        at = i + tl.arange(0, BLOCK_D)
        decoded = tl.zeros((BLOCK_D,), tl.float32)
        if ONE_BLOCK:
            block = block_of(weight, latent, real, at, d)
            decoded += tl.sum(value[:, None] * block, axis=0)
        else:
            for start in range(0, k, BLOCK_K):
                value, latent, real = entries_of(values, indices, row, start, k, m, BLOCK_K)
                decoded += tl.sum(value[:, None] * block_of(weight, latent, real, at, d), axis=0)
        if BIASED:
            decoded += tl.load(bias + at, at < d, other=0.0)
        error = decoded - tl.load(target + row * d + at, at < d, other=0.0)
        square += error * error
        scaled = error * factor
        tl.store(residual + row * d + at, scaled, at < d)
        if ONE_BLOCK:
            grads += tl.sum(block * scaled[None, :], axis=1)
        else:
            for start in range(0, k, BLOCK_K):
                value, latent, real = entries_of(values, indices, row, start, k, m, BLOCK_K)
                block = block_of(weight, latent, real, at, d)
                so_far = value_grads + row * k + start + entry
                inside = (start + entry < k) & (value != 0)
                before = tl.load(so_far, inside & (i > 0), other=0.0)
                more = tl.where(value != 0, tl.sum(block * scaled[None, :], axis=1), 0.0)
                tl.store(so_far, before + more, start + entry < k)
    if ONE_BLOCK:
        tl.store(value_grads + row * k + entry, tl.where(value != 0, grads, 0.0), entry < k)
    tl.store(squares + row, tl.sum(square))


def sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Decode a code: sum_c values[:, c] * weight[indices[:, c]] + bias, as [n, d].

    Args:
        values: [n, k] float64, float32 or bfloat16, contiguous.
        indices: [n, k] int64, contiguous.
        weight: [m, d] decoder rows of the same dtype, contiguous.
        bias: [d] of the same dtype; None: no bias.

    Returns:
        [n, d] decoded rows, in the dtype of `weight`.
    """
    n, k = indices.shape
    m, d = weight.shape
    out = weight.new_empty(n, d)
    # 256 bytes per row: at (d, m, k) = (4096, 131072, 64) such a piece of all rows stays in the L2
    # cache.
    block_k, block_d = _blocks(k, d, 16, 256 // weight.itemsize)
    if n:
        decode_rows[(n, triton.cdiv(d, block_d))](
            values,
            indices,
            weight,
            weight if bias is None else bias,
            out,
            m,
            d,
            k,
            BIASED=bias is not None,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            WIDE=_wide(weight),
            # More warps would exchange their sums through shared memory, block by block.
            num_warps=1,
            **LAUNCH,
        )
    return out


def gather_dots(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Compute the products of rows with the weight rows that `indices` name, as [n, k].

    Nothing of the size [n, k, d] is stored. The bits of a float64 product do not depend on n, k and
    m: a matching compares products of different calls.

    Args:
        rows: [n, d] float64, float32 or bfloat16, contiguous.
        weight: [m, d] of the same dtype, contiguous.
        indices: [n, k] int64, contiguous.

    Returns:
        [n, k] products.
    """
    n, k = indices.shape
    m, d = weight.shape
    out = rows.new_empty(n, k)
    block_k, block_d = _blocks(8, d, 8, 256) if rows.itemsize == 8 else _blocks(k, d, 16, 256)
    if out.numel():
        dot_rows[(n, triton.cdiv(k, block_k))](
            rows,
            weight,
            indices,
            out,
            m,
            d,
            k,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            WIDE=_wide(weight),
            num_warps=2,
            **LAUNCH,
        )
    return out


def decode_residual(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the error of a reconstruction and its gradients, as `reference.decode_residual`.

    Args:
        values: [n, k] float32, contiguous, as all tensors here.
        indices: [n, k] int64.
        weight: [m, d] decoder rows.
        bias: [d]; None: no bias.
        target: [n, d] rows to reconstruct.
        factor: factor of the residual.

    Returns:
        The residual [n, d], the gradients of the values [n, k], and the sum of squared errors, []
        float64.
    """
    n, k = indices.shape
    m, d = weight.shape
    residual, value_grads = target.new_empty(n, d), values.new_empty(n, k)
    squares = target.new_empty(n)
    block_k = min(power_of_two(k), 4 if interpreting() else _WIDEST_CODE)
    block_d = min(power_of_two(d), 16 if interpreting() else min(64, 4096 // block_k))
    if n:
        residual_rows[(n,)](
            values,
            indices,
            weight,
            weight if bias is None else bias,
            target,
            residual,
            value_grads,
            squares,
            factor,
            m,
            d,
            k,
            BIASED=bias is not None,
            ONE_BLOCK=k <= block_k,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            num_warps=max(2, block_k * block_d // 1024),
            **LAUNCH,
        )
    return residual, value_grads, squares.sum(dtype=torch.float64)


def _blocks(k: int, d: int, most_k: int, most_d: int) -> tuple[int, int]:
    if interpreting():
        most_k, most_d = 4, 16
    return min(power_of_two(k), most_k), min(power_of_two(d), most_d)


def _wide(tensor: Tensor) -> tl.dtype:
    """Return the dtype in which elements of a tensor are multiplied and added."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
