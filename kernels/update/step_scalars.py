"""Perform a training step's small parts: rates, clipping, the SAE's vectors, idle latents.

Each kernel replaces a dozen operators of torch on few numbers. Sums are float64 and in a fixed
order, by a single program, so the same seed gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting, thread_registers
from .update_biases import adam

Vector = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""A parameter, its two Adam moments, its gradient, and a tensor subtracted from the gradient or
None; [size] float32 each"""


@triton.jit
def advance_rates(lr, steps, rates, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr):
    """Increment the step, and store its `reference.adam_rates`; a single program.

    A power beta^step is computed as exp(step * log(beta)). Its relative error grows with the step,
    but the power itself falls faster, so it is exact where it matters.

    Args:
        lr: [] float64, learning rate.
        steps: [] float64, number of steps, incremented.
        rates: [2] float64 output.
        LOG_BETA1: logarithm of beta1.
        LOG_BETA2: logarithm of beta2.
    """
    step = tl.load(steps) + 1.0
    tl.store(steps, step)
    power1 = tl.exp(step * tl.full((), LOG_BETA1, tl.float64))
    power2 = tl.exp(step * tl.full((), LOG_BETA2, tl.float64))
    tl.store(rates, tl.load(lr) / (1.0 - power1))
    tl.store(rates + 1, tl.sqrt(1.0 - power2))


@triton.jit
def gradient_at(gradient, minus, at, size, MINUS: tl.constexpr):
    """Return a gradient at places below `size`, zero elsewhere; if MINUS, less `minus`."""
    found = tl.load(gradient + at, at < size, other=0.0)
    if MINUS:
        found -= tl.load(minus + at, at < size, other=0.0)
    return found


@triton.jit
def clip_gradient(
    row_squares,
    gradient,
    minus,
    other_gradient,
    factor,
    latents,
    size,
    other_size,
    CLIP: tl.constexpr,
    MINUS: tl.constexpr,
    OTHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the factor that limits the norm of a gradient to CLIP; a single program.

    Args:
        row_squares: [latents] float64, squared norms of the parts that belong to latents.
        gradient: [size] float32, another part.
        minus: [size] float32, subtracted from it, if MINUS.
        other_gradient: [other_size] float32, a further part, if OTHER.
        factor: [] float64 output, at most 1.
        latents: number of latents.
        size: size of `gradient`.
        other_size: size of `other_gradient`.
        CLIP: maximum norm.
        MINUS: whether `minus` is given.
        OTHER: whether `other_gradient` is given.
        BLOCK: elements per iteration.
    """
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float64)
    for i in range(0, latents, BLOCK):
        squares += tl.load(row_squares + i + lane, i + lane < latents, other=0.0)
    for i in range(0, size, BLOCK):
        part = gradient_at(gradient, minus, i + lane, size, MINUS).to(tl.float64)
        squares += part * part
    if OTHER:
        for i in range(0, other_size, BLOCK):
            part = gradient_at(other_gradient, minus, i + lane, other_size, False).to(tl.float64)
            squares += part * part
    length = tl.sqrt(tl.sum(squares))
    clip = tl.full((), CLIP, tl.float64)
    ratio = clip / (length + tl.full((), 1e-6, tl.float64))
    # NaN stays NaN: the training has diverged, and its loss shows it.
    tl.store(factor, tl.where(ratio > 1.0, 1.0, ratio))


@triton.jit
def update_vector(
    parameter,
    first,
    second,
    gradient,
    minus,
    factor,
    rates,
    at,
    size,
    rest1,
    beta2,
    rest2,
    eps,
    MINUS: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Update a vector and its moments by Adam, at the places `at` below `size`.

    Args:
        parameter: [size] float32, updated, like the moments.
        first: [size] float32, first moment.
        second: [size] float32, second moment.
        gradient: [size] float32.
        minus: [size] float32, subtracted from the gradient, if MINUS.
        factor: [] float64, factor of the gradient, if CLIPPED.
        rates: [2] float64, see `reference.adam_rates`.
        at: places.
        size: size of the vector.
        rest1: 1 - beta1.
        beta2: decay rate of second moments.
        rest2: 1 - beta2.
        eps: term added to the denominator.
        MINUS: whether `minus` is given.
        CLIPPED: whether `factor` is given.
    """
    found = gradient_at(gradient, minus, at, size, MINUS)
    if CLIPPED:
        found *= tl.load(factor).to(tl.float32)
    updated, mean, square = adam(
        tl.load(parameter + at, at < size, other=0.0),
        tl.load(first + at, at < size, other=0.0),
        tl.load(second + at, at < size, other=0.0),
        found,
        tl.load(rates).to(tl.float32),
        tl.load(rates + 1).to(tl.float32),
        rest1,
        beta2,
        rest2,
        eps,
    )
    tl.store(parameter + at, updated, at < size)
    tl.store(first + at, mean, at < size)
    tl.store(second + at, square, at < size)


@triton.jit
def update_vectors(
    parameter,
    first,
    second,
    gradient,
    minus,
    other,
    other_first,
    other_second,
    other_gradient,
    factor,
    rates,
    idle,
    fired,
    size,
    other_size,
    latents,
    tokens,
    rest1,
    beta2,
    rest2,
    eps,
    MINUS: tl.constexpr,
    OTHER: tl.constexpr,
    CLIPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update BLOCK places of one or two vectors by Adam, and the idle times of BLOCK latents.

    Args:
        parameter: see `update_vector`, as the next four.
        first: [size] float32.
        second: [size] float32.
        gradient: [size] float32.
        minus: [size] float32, if MINUS.
        other: [other_size] float32, a second parameter, if OTHER.
        other_first: [other_size] float32, its first moment.
        other_second: [other_size] float32, its second moment.
        other_gradient: [other_size] float32, its gradient.
        factor: [] float64, if CLIPPED.
        rates: [2] float64, see `reference.adam_rates`.
        idle: [latents] int64, tokens since each latent fired; updated.
        fired: [latents] int64, number of this step's tokens on which each latent fired.
        size: size of `parameter`.
        other_size: size of `other`.
        latents: number of latents.
        tokens: number of tokens of this step.
        rest1: see `update_vector`, as the next three.
        beta2: decay rate of second moments.
        rest2: 1 - beta2.
        eps: term added to the denominator.
        MINUS: whether `minus` is given.
        OTHER: whether there is a second vector.
        CLIPPED: whether `factor` is given.
        BLOCK: places per program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    update_vector(
        parameter,
        first,
        second,
        gradient,
        minus,
        factor,
        rates,
        at,
        size,
        rest1,
        beta2,
        rest2,
        eps,
        MINUS,
        CLIPPED,
    )
    if OTHER:
        update_vector(
            other,
            other_first,
            other_second,
            other_gradient,
            minus,
            factor,
            rates,
            at,
            other_size,
            rest1,
            beta2,
            rest2,
            eps,
            False,
            CLIPPED,
        )
    before = tl.load(idle + at, at < latents, other=0)
    silent = tl.load(fired + at, at < latents, other=0) == 0
    tl.store(idle + at, tl.where(silent, before + tokens, 0), at < latents)


def next_rates(lr: Tensor, steps: Tensor, log_beta1: float, log_beta2: float) -> Tensor:
    """Increment the step, in place, and return its `reference.adam_rates`, [2] float64.

    Args:
        lr: [] float64, learning rate.
        steps: [] float64, number of steps, incremented.
        log_beta1: logarithm of beta1; -infinity for 0.
        log_beta2: logarithm of beta2; -infinity for 0.

    Returns:
        [2] float64, rates of the step.
    """
    rates = lr.new_empty(2)
    advance_rates[(1,)](
        lr, steps, rates, LOG_BETA1=log_beta1, LOG_BETA2=log_beta2, num_warps=1, **LAUNCH
    )
    return rates


def clip_factor(
    clip: float, row_squares: Tensor, vector: Vector, other: Vector | None = None
) -> Tensor:
    """Compute the factor [] float64 that limits the norm of a gradient to `clip`.

    Args:
        clip: maximum norm.
        row_squares: [m] float64, squared norms of the parts that belong to latents.
        vector: vector whose gradient is another part.
        other: second such vector, with nothing to subtract; None: there is none.

    Returns:
        [] float64, factor from 0 to 1.
    """
    factor = row_squares.new_empty(())
    *_, gradient, minus = vector
    some = gradient  # in place of arguments that are not read
    clip_gradient[(1,)](
        row_squares,
        gradient,
        some if minus is None else minus,
        some if other is None else other[3],
        factor,
        row_squares.numel(),
        gradient.numel(),
        0 if other is None else other[3].numel(),
        CLIP=clip,
        MINUS=minus is not None,
        OTHER=other is not None,
        BLOCK=16 if interpreting() else 4096,
        num_warps=16,
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
    return factor


def finish_step(
    vector: Vector,
    other: Vector | None,
    factor: Tensor | None,
    rates: Tensor,
    betas: tuple[float, float],
    eps: float,
    idle: Tensor,
    fired: Tensor,
    tokens: int,
) -> None:
    """Update one or two vectors by Adam, and the idle times of latents, in place.

    Args:
        vector: vector to update.
        other: second vector, with nothing to subtract; None: there is none.
        factor: [] float64, factor of the gradients; None: 1.
        rates: [2] float64, see `reference.adam_rates`.
        betas: beta1 and beta2 of Adam.
        eps: term added to the denominator.
        idle: [m] int64, tokens since each latent fired.
        fired: [m] int64, number of this step's tokens on which each latent fired.
        tokens: number of tokens of this step.
    """
    *moved, gradient, minus = vector
    size, latents = gradient.numel(), idle.numel()
    other_size = 0 if other is None else other[3].numel()
    block = 16 if interpreting() else 256
    some = gradient  # in place of arguments that are not read
    update_vectors[(triton.cdiv(max(size, other_size, latents), block),)](
        *moved,
        gradient,
        some if minus is None else minus,
        *((some,) * 4 if other is None else other[:4]),
        rates if factor is None else factor,
        rates,
        idle,
        fired,
        size,
        other_size,
        latents,
        tokens,
        1.0 - betas[0],
        betas[1],
        1.0 - betas[1],
        eps,
        MINUS=minus is not None,
        OTHER=other is not None,
        CLIPPED=factor is not None,
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
