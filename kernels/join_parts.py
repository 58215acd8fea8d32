"""What the blocks of columns of a latent's row have in common, from their parts of it."""

import triton
import triton.language as tl

from .round_rows import length_of


@triton.jit(do_not_specialize=["latents", "count"])
def join_parts(parts, joined, latents, count, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    """Add up `parts` [count, latents], in their order and in float64.

    WHAT becomes of the sums: "add" adds them to `joined` [latents], "store" stores them there,
    "length" their roots.
    """
    latent = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = latent < latents
    total = tl.zeros((BLOCK,), tl.float64)
    if WHAT == "add":
        total += tl.load(joined + latent, real, other=0.0)
    at = latent
    for _ in range(count):
        total += tl.load(parts + at, real, other=0.0).to(tl.float64)
        at += latents
    if WHAT == "length":
        total = tl.sqrt_rn(total.to(tl.float32))
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


@triton.jit(do_not_specialize=["latents"])
def restore_norms(weight, lengths, latents, d, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Divide ROWS rows of `weight` [latents, d], BLOCK_D columns, by `lengths` [latents]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    length = tl.load(lengths + row, row < latents, other=1.0)
    divisor = tl.where(length > 0.0, length, 1.0)
    place = weight + row[:, None] * d + at[None, :]
    inside = (row < latents)[:, None] & (at < d)[None, :]
    tl.store(place, tl.load(place, inside, other=0.0) / divisor[:, None], inside)
