"""What a training step does besides its products: rates, clipping, the SAE's vectors, idle latents.

Each kernel replaces a dozen operators of torch on a few numbers. Sums are float64 and in a fixed
order: one program adds, so the same seed gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting, thread_registers
from .update_biases import adam

Vector = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""A parameter, its moments in Adam, its gradient, and what is subtracted from that; float32 [size]
each."""


@triton.jit
def advance_rates(lr, steps, rates, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr):
    """Count a step and store `reference.adam_rates` of it; all float64.

    A beta to the power of a step is e to the step times the beta's logarithm: as exact where it
    matters, since an error that grows with the step is multiplied by the power, which falls.
    """
    step = tl.load(steps) + 1.0
    tl.store(steps, step)
    power1 = tl.exp(step * tl.full((), LOG_BETA1, tl.float64))
    power2 = tl.exp(step * tl.full((), LOG_BETA2, tl.float64))
    tl.store(rates, tl.load(lr) / (1.0 - power1))
    tl.store(rates + 1, tl.sqrt(1.0 - power2))


@triton.jit
def gradient_at(gradient, minus, at, size, MINUS: tl.constexpr):
    """The gradient of a vector at places below `size`, and zero elsewhere."""
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
    """Store what a gradient is multiplied by so that it is not longer than CLIP, float64.

    `row_squares` are float64 squared lengths of the parts that belong to latents; the rest of the
    gradient is that of one or two vectors.
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
    # NaN stays NaN: the training has diverged, and its loss says so.
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
    """Move a vector by Adam at places below `size`."""
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
    """Move BLOCK places of one or two vectors by Adam, and count on for BLOCK latents.

    `idle` [latents] are the tokens since each latent fired, `fired` on how many of the step's
    `tokens` it did.
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
    """Count a step, in place, and return `reference.adam_rates` of it.

    `lr` and `steps` are float64 []; the logarithm of a beta of 0 is -infinity.
    """
    rates = lr.new_empty(2)
    advance_rates[(1,)](
        lr, steps, rates, LOG_BETA1=log_beta1, LOG_BETA2=log_beta2, num_warps=1, **LAUNCH
    )
    return rates


def clip_factor(
    clip: float, row_squares: Tensor, vector: Vector, other: Vector | None = None
) -> Tensor:
    """`rules.clip_factor` of parts of a gradient; float64 [].

    Args:
        clip: the largest length.
        row_squares: float64 [m], the squared lengths of the latents' parts.
        vector: a vector whose gradient is another part.
        other: one more, with nothing to subtract.
    """
    factor = row_squares.new_empty(())
    *_, gradient, minus = vector
    some = gradient  # stands in for an argument that is not looked at
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
    """Move one or two vectors by Adam, and count for how long latents have been idle, in place.

    Args:
        vector: a parameter.
        other: one more, with nothing to subtract.
        factor: float64 [] multiplies the gradients.
        rates: `reference.adam_rates`.
        betas: the constants of Adam.
        eps: another.
        idle: int64 [m], the tokens since each latent fired.
        fired: int64 [m], on how many of the step's tokens each latent fired.
        tokens: the number of these.
    """
    *moved, gradient, minus = vector
    size, latents = gradient.numel(), idle.numel()
    other_size = 0 if other is None else other[3].numel()
    block = 16 if interpreting() else 256
    some = gradient  # stands in for an argument that is not looked at
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
