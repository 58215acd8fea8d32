"""The gradients of whole rows of the decoder, where their update needs the whole row at once."""

import triton
import triton.language as tl

from .latent_sum import group_of, sum_of_latent
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
    squares,
    weight,
    first,
    second,
    rates,
    latents,
    groups,
    n,
    d,
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
    TASK: tl.constexpr,
    UNIT_NORM: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """TOGETHER latents' rows of the decoder [latents, d].

    A row's gradient is that of `gradient_of_row`; then PROJECT removes the part along the row, and
    `factor` multiplies what is left. TASK "update" is a step of Adam, after which UNIT_NORM
    restores norm one of the row; "squares" writes the squared length of the gradient to `squares`
    [latents].

    PROJECT "inferred" reads the part along the row from `scalars` [latents]; "measured" multiplies
    the gradient by the row, for which a row of several blocks computes its gradient twice.
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
    for latent in range(begin, tl.minimum(begin + TOGETHER, latents)):
        if PROJECT == "inferred":
            scalar = tl.load(scalars + latent)
        if EXTRA:
            slot = tl.load(slots + latent)
        if SHRINK:
            multiple = tl.load(shrink + latent)
        if SIGN:
            sign = tl.load(signs + 1).to(tl.float32)
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
        row = tl.zeros((BLOCK_D,), tl.float32)
        for i in range(0, d, BLOCK_D):
            at = i + lane
            place = latent * d + at
            old = tl.load(weight + place, at < d, other=0.0)
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
            else:
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
                row = tl.where(at < d, row, 0.0)
                length_squares += row * row
                if not (UNIT_NORM and ONE_BLOCK):
                    tl.store(weight + place, row, at < d)

        if TASK == "squares":
            tl.store(squares + latent, tl.sum(length_squares))
        if UNIT_NORM:
            length = tl.sqrt_rn(tl.sum(length_squares))
            divisor = tl.where(length > 0.0, length, 1.0)
            if ONE_BLOCK:
                tl.store(weight + latent * d + lane, row / divisor, lane < d)
            else:
                tl.debug_barrier()  # other threads of this program may have written the row
                for i in range(0, d, BLOCK_D):
                    place = latent * d + i + lane
                    row = tl.load(weight + place, i + lane < d, other=0.0)
                    tl.store(weight + place, row / divisor, i + lane < d)
