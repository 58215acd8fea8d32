"""One block of columns of every latent's row in one matrix: gradients, and what follows from them.

Programs work through all latents for one block of columns before they begin the next one: that much
of the gathered rows stays in the L2 cache. What needs a whole row is summed up by block, and joined
by `join_parts`.
"""

import triton
import triton.language as tl

from .latent_sum import group_of, sum_of_latent
from .round_rows import half_of, inverse_of, rounded_to, square_of
from .update_biases import adam


@triton.jit
def gradient_of_row(
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
    EXTRA: tl.constexpr,
    SHRINK: tl.constexpr,
    SIGN: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A latent's gradient at the columns `at`, where its row is `old`, before it is projected."""
    gradient = sum_of_latent(
        coefficients,
        entries,
        start,
        piece_start,
        rows,
        partial,
        latent,
        first_row,
        at,
        d,
        k,
        BLOCK_E,
        BLOCK_D,
    )
    if EXTRA:
        gradient += tl.load(extra + slot * d + at, at < tl.where(slot >= 0, d, 0), other=0.0)
    if SHRINK:
        gradient += multiple * old
    if SIGN:
        gradient += sign * ((old > 0.0).to(tl.float32) - (old < 0.0).to(tl.float32))
    return gradient


@triton.jit
def adam_at(place, old, first, second, gradient, inside, step_size, root, rest1, beta2, rest2, eps):
    """The row `old` after a step of Adam, whose moments at `place` are updated."""
    row, mean, square = adam(
        old,
        tl.load(first + place, inside, other=0.0, eviction_policy="evict_first"),
        tl.load(second + place, inside, other=0.0, eviction_policy="evict_first"),
        gradient,
        step_size,
        root,
        rest1,
        beta2,
        rest2,
        eps,
    )
    tl.store(first + place, mean, inside, eviction_policy="evict_first")
    tl.store(second + place, square, inside, eviction_policy="evict_first")
    return row


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
    parts,
    weight,
    first,
    second,
    rates,
    units,
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
    PROJECT: tl.constexpr,
    FACTOR: tl.constexpr,
    ENCODER: tl.constexpr,
    TASK: tl.constexpr,
    PACK: tl.constexpr,
    MEASURE: tl.constexpr,
    DROP: tl.constexpr,
    HALF: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_D columns of TOGETHER latents' rows of one matrix [latents, d].

    Gradients are those of `gradient_of_row`; then PROJECT removes the part along the row, which
    `scalars` [latents] hold, and `factor` multiplies what is left. TASK says what becomes of it:

    - "update": a step of Adam. PACK rounds the row for the screen, as `round_rows` does; HALF: to
      float16, times `multipliers` [1]. MEASURE: the square of these columns as they are then goes
      to `parts` [blocks, latents], and that of what rounding took from them to `lost_parts`.
    - "squares": the square of these columns of the gradient goes to `parts`.
    - "along": the product of these columns of the gradient and the row goes to `parts`.
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
        if ENCODER or PROJECT:
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
            if PROJECT:
                gradient -= scalar * old
            if FACTOR:
                gradient *= multiplier
        if TASK == "squares":
            tl.store(parts + part, tl.sum(gradient * gradient))
        if TASK == "along":
            tl.store(parts + part, tl.sum(gradient * old))
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
            row = tl.where(at < d, row, 0.0)
            if PACK:
                if HALF:
                    unit = half_of(row, pack_multiplier)
                    kept = unit * inverse_of(pack_multiplier)
                else:
                    unit = rounded_to(row, DROP)
                    kept = unit
                packed_at = units + latent * padded + at
                tl.store(packed_at, unit.to(units.dtype.element_ty), at < d)
                tl.store(parts + part, tl.sum(square_of(row)))
                tl.store(lost_parts + part, tl.sum(square_of(row - kept)))
            elif MEASURE:
                tl.store(parts + part, tl.sum(row * row))
    if ENCODER:
        tl.store(inputs_share + program * d + at, share, at < d)
