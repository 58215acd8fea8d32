"""Join the sums that `update_columns` makes of each block of columns to those of whole rows."""

import triton
import triton.language as tl

from .round_rows import length_of


@triton.jit(do_not_specialize=["latents", "count"])
def join_parts(parts, joined, latents, count, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """Sum `parts` [count, latents], in their order and in float64, into `joined` [latents].

    ADD: add the sums to what is there.
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
    """Turn sums of squares [count, latents] of packed rows into bounds on lengths [latents]."""
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
    """Divide BLOCK_D columns of ROWS rows of `weight` [latents, d] by the lengths of the rows.

    `parts` [count, latents] are their squared lengths by block of columns. Zeros stay zeros.
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
