"""Combine sums over blocks of columns, from `update_columns`, into sums over whole rows."""

import triton
import triton.language as tl

from ..round_rows import length_of


@triton.jit(do_not_specialize=["latents", "count"])
def join_parts(parts, joined, latents, count, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """Sum parts over blocks of columns, in ascending order and in float64.

    Args:
        parts: [count, latents] float32, one row per block of columns.
        joined: [latents] output.
        latents: number of latents.
        count: number of parts.
        ADD: whether the sums are added to the contents of `joined`.
        BLOCK: latents per program.
    """
    latent = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = latent < latents
    total = tl.zeros((BLOCK,), tl.float64)
    if ADD:
        total += tl.load(joined + latent, real, other=0.0)
    at = latent
    for _ in range(count):
        total += tl.load(parts + at, real, other=0.0).to(tl.float64)
        at += latents
    tl.store(joined + latent, total.to(joined.dtype.element_ty), real)


@triton.jit(do_not_specialize=["latents", "count"])
def join_lengths(norm_parts, lost_parts, norm, lost, latents, count, d, BLOCK: tl.constexpr):
    """Turn sums of squares of packed rows into upper bounds of norms; BLOCK latents per program.

    Args:
        norm_parts: [count, latents] float32, squared norms of the rows by block of columns.
        lost_parts: [count, latents] float32, the same of their rounding errors.
        norm: [latents] float32 output.
        lost: [latents] float32 output.
        latents: number of latents.
        count: number of parts.
        d: width of a row, see `length_of`.
        BLOCK: latents per program.
    """
    latent = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    lost_squares = tl.zeros((BLOCK,), tl.float32)
    at = latent
    for _ in range(count):
        squares += tl.load(norm_parts + at, latent < latents, other=0.0)
        lost_squares += tl.load(lost_parts + at, latent < latents, other=0.0)
        at += latents
    tl.store(norm + latent, length_of(squares, d), latent < latents)
    tl.store(lost + latent, length_of(lost_squares, d), latent < latents)


@triton.jit(do_not_specialize=["latents", "count"])
def restore_norms(weight, parts, latents, count, d, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Divide a tile [ROWS, BLOCK_D] of `weight` by the norms of its rows; rows of zeros stay zero.

    Args:
        weight: [latents, d], updated in place.
        parts: [count, latents] float32, squared norms of the rows by block of columns.
        latents: number of latents.
        count: number of parts.
        d: width of a row.
        ROWS: rows per program, along axis 0 of the grid.
        BLOCK_D: columns per program, along axis 1 of the grid.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < latents
    squares = tl.zeros((ROWS,), tl.float32)
    part = row
    for _ in range(count):
        squares += tl.load(parts + part, real, other=0.0)
        part += latents
    length = tl.sqrt_rn(squares)
    divisor = tl.where(length > 0.0, length, 1.0)
    at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    place = weight + row[:, None] * d + at[None, :]
    inside = real[:, None] & (at < d)[None, :]
    tl.store(place, tl.load(place, inside, other=0.0) / divisor[:, None], inside)
