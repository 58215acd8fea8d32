"""One block of columns of every latent's row in one matrix: gradients, and what follows from them.

Programs work through all latents for one block of columns before they begin the next one: that much
of the gathered rows stays in the L2 cache. What needs a whole row is summed up by block, and joined
by the kernels at the end of this file.
"""

import triton
import triton.language as tl

from .latent_sum import group_of
from .round_rows import half_of, inverse_of, length_of, rounded_to, square_of
from .update_rows import adam_at, gradient_of_row


# For these sizes neither 1 nor a multiple of 16 is worth code of its own.
@triton.jit(do_not_specialize=["latents", "groups", "n", "k"])
def update_columns(
    coefficients,
    entries,
    start,
    piece_start,
    rows,
    partial,
    group_ends,
    slots,
    extra,
    shrink,
    signs,
    factor,
    scalars,
    inputs_share,
    square_parts,
    weight,
    first,
    second,
    rates,
    units,
    norm_parts,
    lost_parts,
    multipliers,
    latents,
    groups,
    n,
    d,
    padded,
    k,
    rest1,
    beta2,
    rest2,
    eps,
    GROUPED: tl.constexpr,
    EXTRA: tl.constexpr,
    SHRINK: tl.constexpr,
    SIGN: tl.constexpr,
    INFERRED: tl.constexpr,
    FACTOR: tl.constexpr,
    ENCODER: tl.constexpr,
    TASK: tl.constexpr,
    PACK: tl.constexpr,
    DROP: tl.constexpr,
    HALF: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_D columns of TOGETHER latents' rows of one matrix [latents, d].

    Gradients are those of `gradient_of_row`; then INFERRED removes the part along the row, which
    `scalars` [latents] tell, and `factor` multiplies what is left. TASK says what becomes of it:

    - "update": a step of Adam. PACK rounds the row for the screen, as `round_rows` does; HALF: to
      float16, times `multipliers` [1]. Squares of these columns, and of what rounding took from
      them, go to `norm_parts` and `lost_parts` [blocks, latents].
    - "squares": the square of these columns goes to `square_parts` [blocks, latents].
    - "share": nothing; only the share of the inputs' gradient is wanted.

    ENCODER: `scalars` are the gradients of the biases; their products with the rows as they were
    are summed into `inputs_share` [programs, d].
    """
    program, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    at = block * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = program * TOGETHER
    slot = tl.full((), -1, tl.int64)
    multiple, sign, scalar = 0.0, 0.0, 0.0
    if FACTOR:
        multiplier = tl.load(factor).to(tl.float32)
    if TASK == "update":
        step_size, root = tl.load(rates).to(tl.float32), tl.load(rates + 1).to(tl.float32)
    if HALF:
        pack_multiplier = tl.load(multipliers)
    share = tl.zeros((BLOCK_D,), tl.float32)
    for latent in range(begin, tl.minimum(begin + TOGETHER, latents)):
        if ENCODER or INFERRED:
            scalar = tl.load(scalars + latent)
        if EXTRA:
            slot = tl.load(slots + latent)
        if SHRINK:
            multiple = tl.load(shrink + latent)
        if SIGN:
            sign = tl.load(signs + (0 if ENCODER else 1)).to(tl.float32)
        first_row = tl.zeros_like(begin)
        if GROUPED:
            first_row = group_of(latent, group_ends, groups) * n
        place = latent * d + at
        part = block * latents + latent
        old = tl.load(weight + place, at < d, other=0.0, eviction_policy="evict_first")
        if ENCODER:
            share += scalar * old
        if TASK != "share":
            gradient = gradient_of_row(
                coefficients,
                entries,
                start,
                piece_start,
                rows,
                partial,
                extra,
                latent,
                first_row,
                slot,
                multiple,
                sign,
                old,
                at,
                d,
                k,
                EXTRA,
                SHRINK,
                SIGN,
                BLOCK_E,
                BLOCK_D,
            )
            if INFERRED:
                gradient -= scalar * old
            if FACTOR:
                gradient *= multiplier
        if TASK == "squares":
            tl.store(square_parts + part, tl.sum(gradient * gradient))
        if TASK == "update":
            row = adam_at(
                place,
                old,
                first,
                second,
                gradient,
                at < d,
                step_size,
                root,
                rest1,
                beta2,
                rest2,
                eps,
            )
            tl.store(weight + place, row, at < d, eviction_policy="evict_first")
            if PACK:
                row = tl.where(at < d, row, 0.0)
                if HALF:
                    unit = half_of(row, pack_multiplier)
                    kept = unit * inverse_of(pack_multiplier)
                else:
                    unit = rounded_to(row, DROP)
                    kept = unit
                packed_at = units + latent * padded + at
                tl.store(packed_at, unit.to(units.dtype.element_ty), at < d)
                tl.store(norm_parts + part, tl.sum(square_of(row)))
                tl.store(lost_parts + part, tl.sum(square_of(row - kept)))
    if ENCODER:
        tl.store(inputs_share + program * d + at, share, at < d)


@triton.jit(do_not_specialize=["latents", "parts"])
def add_squares(square_parts, squares, latents, parts, BLOCK: tl.constexpr):
    """Add `square_parts` [parts, latents], in their order, to float64 `squares` [latents]."""
    latent = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(squares + latent, latent < latents, other=0.0)
    at = latent
    for _ in range(parts):
        total += tl.load(square_parts + at, latent < latents, other=0.0).to(tl.float64)
        at += latents
    tl.store(squares + latent, total, latent < latents)


@triton.jit(do_not_specialize=["latents", "parts"])
def join_lengths(norm_parts, lost_parts, norm, lost, latents, parts, d, BLOCK: tl.constexpr):
    """Turn sums of squares [parts, latents] of packed rows into bounds on lengths [latents]."""
    latent = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    lost_squares = tl.zeros((BLOCK,), tl.float32)
    at = latent
    for _ in range(parts):
        squares += tl.load(norm_parts + at, latent < latents, other=0.0)
        lost_squares += tl.load(lost_parts + at, latent < latents, other=0.0)
        at += latents
    tl.store(norm + latent, length_of(squares, d), latent < latents)
    tl.store(lost + latent, length_of(lost_squares, d), latent < latents)
