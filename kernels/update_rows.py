"""The gradients of the rows of one matrix, and what is done with them while they are at hand."""

import triton
import triton.language as tl

from .latent_sum import group_of, sum_of_latent
from .round_rows import half_of, inverse_of, length_of, rounded_to, square_of
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


# For these sizes neither 1 nor a multiple of 16 is worth code of its own.
@triton.jit(do_not_specialize=["latents", "groups", "n", "k"])
def update_rows(
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
    squares,
    weight,
    first,
    second,
    rates,
    units,
    norm,
    lost,
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
    UNIT_NORM: tl.constexpr,
    PACK: tl.constexpr,
    DROP: tl.constexpr,
    HALF: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """TOGETHER latents' rows of one matrix [latents, d].

    A row's gradient is the sum over its entries of coefficients * rows, plus its slot of `extra`,
    plus `shrink` times the row, plus `signs` times the signs of the row; then PROJECT removes the
    part along the row, and `factor` multiplies what is left. TASK says what becomes of it:

    - "update": a step of Adam. UNIT_NORM restores norm one of the row, PACK rounds it for the
      screen, as `round_rows` does; HALF: to float16, times `multipliers` [1].
    - "squares": its squared length is added to `squares` [latents].
    - "share": nothing; only the share of the inputs' gradient is wanted.

    ENCODER: `scalars` [latents] are the gradients of the biases; their products with the rows as
    they were are summed into `inputs_share` [programs, d]. PROJECT "inferred" reads the part along
    the row from `scalars`; "measured" multiplies the gradient by the row, for which a row of
    several blocks computes its gradient twice.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_D)
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
        if ENCODER or PROJECT == "inferred":
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
        if PROJECT == "measured" and not ONE_BLOCK:
            products = tl.zeros((BLOCK_D,), tl.float32)
            for i in range(0, d, BLOCK_D):
                at = i + lane
                old = tl.load(weight + latent * d + at, at < d, other=0.0)
                products += old * gradient_of_row(
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
            scalar = tl.sum(products)

        length_squares = tl.zeros((BLOCK_D,), tl.float32)
        lost_squares = tl.zeros((BLOCK_D,), tl.float32)
        row = tl.zeros((BLOCK_D,), tl.float32)
        for i in range(0, d, BLOCK_D):
            at = i + lane
            place = latent * d + at
            old = tl.load(weight + place, at < d, other=0.0)
            if ENCODER:
                if ONE_BLOCK:
                    share += scalar * old
                else:
                    so_far = inputs_share + program * d + at
                    before = tl.load(so_far, at < tl.where(latent > begin, d, 0), other=0.0)
                    tl.store(so_far, before + scalar * old, at < d)
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
                if PROJECT == "measured" and ONE_BLOCK:
                    scalar = tl.sum(gradient * old)
                if PROJECT != "none":
                    gradient -= scalar * old
                if FACTOR:
                    gradient *= multiplier
            if TASK == "squares":
                length_squares += gradient * gradient
            if TASK == "update":
                row, mean, square = adam(
                    old,
                    tl.load(first + place, at < d, other=0.0),
                    tl.load(second + place, at < d, other=0.0),
                    gradient,
                    step_size,
                    root,
                    rest1,
                    beta2,
                    rest2,
                    eps,
                )
                row = tl.where(at < d, row, 0.0)
                tl.store(first + place, mean, at < d)
                tl.store(second + place, square, at < d)
                if PACK:
                    if HALF:
                        unit = half_of(row, pack_multiplier)
                        kept = unit * inverse_of(pack_multiplier)
                    else:
                        unit = rounded_to(row, DROP)
                        kept = unit
                    packed_at = units + latent * padded + at
                    tl.store(packed_at, unit.to(units.dtype.element_ty), at < d)
                    length_squares += square_of(row)
                    lost_squares += square_of(row - kept)
                else:
                    length_squares += row * row
                if not (UNIT_NORM and ONE_BLOCK):
                    tl.store(weight + place, row, at < d)

        if not ONE_BLOCK:
            # The row and `inputs_share` are read again, perhaps by other threads of this program.
            tl.debug_barrier()
        if TASK == "squares":
            length = tl.sum(length_squares).to(tl.float64)
            tl.store(squares + latent, tl.load(squares + latent) + length)
        if PACK:
            tl.store(norm + latent, length_of(tl.sum(length_squares), d))
            tl.store(lost + latent, length_of(tl.sum(lost_squares), d))
        if UNIT_NORM:
            length = tl.sqrt_rn(tl.sum(length_squares))
            divisor = tl.where(length > 0.0, length, 1.0)
            if ONE_BLOCK:
                tl.store(weight + latent * d + lane, row / divisor, lane < d)
            else:
                for i in range(0, d, BLOCK_D):
                    place = latent * d + i + lane
                    row = tl.load(weight + place, i + lane < d, other=0.0)
                    tl.store(weight + place, row / divisor, i + lane < d)
    if ENCODER and ONE_BLOCK:
        tl.store(inputs_share + program * d + lane, share, lane < d)
