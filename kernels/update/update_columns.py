"""Compute the gradients of one block of columns of one matrix for every latent, and use them.

Programs process all latents for one block of columns before they begin the next block, so that this
block of the gathered rows stays in the L2 cache. Results that need whole rows are summed by block,
and combined by `join_parts`.
"""

import triton
import triton.language as tl

from ..codes.latent_sum import group_of, sum_of_latent
from ..round_rows import half_of, inverse_of, rounded_to, square_of
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
    """Return a latent's gradient at the columns `at`, before the projection.

    Args:
        coefficients: see `sum_of_latent`, as the next five.
        entries: [n * k] int64.
        start: [m + 1] int64.
        piece_start: [m + 1] int64.
        rows: [., d] float32.
        partial: [pieces, d] float32.
        extra: [c, d] additional gradients, if EXTRA.
        latent: the latent.
        first_row: row of `rows` that token 0 has.
        slot: slot of the latent in `extra`, -1 for none.
        multiple: multiple of the row that is added, if SHRINK.
        sign: multiple of the signs of the row that is added, if SIGN.
        old: [BLOCK_D] the row before the update.
        at: [BLOCK_D] columns.
        d: width.
        k: entries per token.
        EXTRA: whether there are extra gradients.
        SHRINK: whether there is a multiple.
        SIGN: whether there is a multiple of signs.
        BLOCK_E: entries per iteration.
        BLOCK_D: number of columns.
    """
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
    """Return the row `old` after a step of Adam, and update its moments at `place`; see `adam`."""
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


# Code specialised to 1 or to multiples of 16 is not worth its compilation for these sizes.
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
    """Process BLOCK_D columns of the rows of TOGETHER latents in one matrix.

    The gradient is computed by `gradient_of_row`; PROJECT then removes its component along the row,
    and `factor` multiplies the rest. The results that TASK selects are:

    - "update": a step of Adam. PACK rounds the row for the screen, as `round_rows` does. MEASURE or
      PACK: the squared norm of these columns of the new row in `parts`; PACK: that of their
      rounding errors in `lost_parts`.
    - "squares": the squared norm of these columns of the gradient in `parts`.
    - "along": the product of these columns of the gradient and of the row in `parts`.
    - "share": none but the share of the inputs' gradient.

    Args:
        coefficients: [n, k] float32, factors of `rows`.
        entries: [n * k] int64, see `ByLatent`.
        start: [latents + 1] int64, see `ByLatent`.
        piece_start: [latents + 1] int64, see `ByLatent`.
        rows: [n, d] float32, or [groups, n, d] if GROUPED.
        partial: [pieces, d] float32, see `partial_sums`.
        group_ends: [groups] int64, see `Groups`, if GROUPED.
        slots: [latents] int64, see `Slots`, if EXTRA.
        extra: [c, d] float32, additional gradients, if EXTRA.
        shrink: [latents] float32, see `Decay`, if SHRINK.
        signs: [2] float64, see `Decay.sign`, if SIGN.
        factor: [] float64, factor of the gradient, if FACTOR.
        scalars: [latents] float32; ENCODER: gradients of the biases; PROJECT: components of the
            gradients along the rows.
        inputs_share: [programs along axis 0, d] float32 output, if ENCODER: sum of scalar times row
            before the update.
        parts: [blocks, latents] float32 output, see above.
        weight: [latents, d] float32, updated, as its moments.
        first: [latents, d] float32, first moment.
        second: [latents, d] float32, second moment.
        rates: [2] float64, see `reference.adam_rates`.
        units: [latents, padded] output, packed rows, if PACK.
        lost_parts: [blocks, latents] float32 output, if PACK.
        multipliers: [1] float32, factor of rows before they are rounded to float16, if HALF.
        latents: number of latents.
        groups: number of groups.
        n: number of tokens.
        d: width.
        padded: width of `units`.
        k: entries per token.
        rest1: see `adam`, as the next three.
        beta2: decay rate of the second moment.
        rest2: 1 - beta2.
        eps: term added to the denominator.
        GROUPED: whether groups of latents have their own rows.
        EXTRA: whether there are extra gradients.
        SHRINK: whether multiples of rows are added.
        SIGN: whether multiples of signs are added.
        PROJECT: whether the component along the row is removed.
        FACTOR: whether there is a factor.
        ENCODER: whether the matrix is the encoder; otherwise it is the decoder.
        TASK: see above.
        PACK: whether rows are packed.
        MEASURE: whether the norms of the new rows are measured.
        DROP: see `round_rows`.
        HALF: whether rows are packed as float16.
        TOGETHER: latents per program, along axis 0 of the grid.
        BLOCK_E: entries per iteration.
        BLOCK_D: columns per program, along axis 1 of the grid.
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
