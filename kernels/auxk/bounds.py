"""Bound the numbers of AuxK's matrices, from which the multipliers of their parts follow.

Each program of a kernel stores the largest number it has seen; kernels that follow take the maximum
over the programs. So a bound does not depend on the order of the programs, and needs no atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, power_of_two, programs_at_once
from ..parts import wide
from ..round_rows import multiplier_of

INPUTS = tl.constexpr(0)
ENCODER = tl.constexpr(1)
DECODER = tl.constexpr(2)
DECODER_NORM = tl.constexpr(3)
"""norms of decoder rows"""
ERROR = tl.constexpr(4)
SCORES = tl.constexpr(5)
"""scores that may be active"""
MISSED = tl.constexpr(6)
_KINDS = 7


@triton.jit
def largest_of(largest, kind: tl.constexpr, programs, LANES: tl.constexpr):
    """Return the largest number of a kind.

    Args:
        largest: [kinds, programs] float32.
        kind: kind of the numbers, see above.
        programs: number of programs.
        LANES: power of two, at least `programs`.
    """
    lane = tl.arange(0, LANES)
    return tl.max(tl.load(largest + kind * programs + lane, lane < programs, other=0.0))


@triton.jit
def note_largest(largest, kind: tl.constexpr, programs, number):
    """Store the largest number of a kind that this program has seen."""
    tl.store(largest + kind * programs + tl.program_id(0), number)


@triton.jit
def multiplier_at(largest, kind: tl.constexpr, programs, LANES: tl.constexpr, PARTS: tl.constexpr):
    """Return the multiplier of a matrix from the largest number of its kind."""
    multiplier = 1.0
    if PARTS == 2:
        multiplier = multiplier_of(largest_of(largest, kind, programs, LANES))
    return multiplier


@triton.jit
def multiplier_of_missed(largest, active, programs, LANES: tl.constexpr, PARTS: tl.constexpr):
    """Return the multiplier of the error that `active` latents per token leave."""
    multiplier = 1.0
    if PARTS == 2:
        score = largest_of(largest, SCORES, programs, LANES)
        weight = largest_of(largest, DECODER, programs, LANES)
        error = largest_of(largest, ERROR, programs, LANES)
        multiplier = multiplier_of(active * score * weight + error)
    return multiplier


@triton.jit
def multiplier_of_gradients(largest, d_out, programs, LANES: tl.constexpr, PARTS: tl.constexpr):
    """Return the multiplier of the gradients of scores, products of the error left and decoder."""
    multiplier = 1.0
    if PARTS == 2:
        missed = largest_of(largest, MISSED, programs, LANES)
        norm = largest_of(largest, DECODER_NORM, programs, LANES)
        multiplier = multiplier_of(missed * norm * tl.sqrt_rn(tl.zeros((), tl.float32) + d_out))
    return multiplier


@triton.jit
def largest_and_square(source, row, d, BLOCK: tl.constexpr):
    """Return the largest absolute number of a row of `source` [., d], and its sum of squares."""
    lane = tl.arange(0, BLOCK)
    most = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, d, BLOCK):
        at = i + lane
        value = tl.load(source + row * d + at, at < d, other=0.0)
        most = tl.maximum(most, tl.abs(value))
        square += value * value
    return tl.max(most), tl.sum(square)


@triton.jit
def largest_numbers(
    inputs,
    residual,
    w_enc,
    w_dec,
    latents,
    count,
    largest,
    scale,
    rows,
    d,
    d_out,
    BLOCK: tl.constexpr,
):
    """Find the largest numbers of the operands; programs share the rows.

    Args:
        inputs: [rows, d] float32.
        residual: [rows, d_out] float32; `scale` times it is the error.
        w_enc: [m, d] float32.
        w_dec: [m, d_out] float32.
        latents: [c] int64, dead latents.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs] float32 output; kinds that are found later get zeros.
        scale: factor of `residual`.
        rows: number of tokens.
        d: width of the inputs.
        d_out: width of the error.
        BLOCK: elements per iteration.
    """
    dead = tl.load(count)
    first, step = tl.program_id(0), tl.num_programs(0)
    none = tl.zeros((), tl.float32)
    encoder, decoder, square = none, none, none
    for place in range(first, dead, step):
        latent = tl.load(latents + place)
        most, _ = largest_and_square(w_enc, latent, d, BLOCK)
        encoder = tl.maximum(encoder, most)
        most, squares = largest_and_square(w_dec, latent, d_out, BLOCK)
        decoder = tl.maximum(decoder, most)
        square = tl.maximum(square, squares)
    note_largest(largest, ENCODER, step, encoder)
    note_largest(largest, DECODER, step, decoder)
    note_largest(largest, DECODER_NORM, step, tl.sqrt_rn(square))
    source, error = none, none
    for row in range(first, tl.where(dead > 0, rows, 0), step):
        most, _ = largest_and_square(inputs, wide(row), d, BLOCK)
        source = tl.maximum(source, most)
        most, _ = largest_and_square(residual, wide(row), d_out, BLOCK)
        error = tl.maximum(error, most)
    note_largest(largest, INPUTS, step, source)
    note_largest(largest, ERROR, step, tl.abs(scale) * error)
    note_largest(largest, SCORES, step, none)
    note_largest(largest, MISSED, step, none)


def bounds(
    inputs: Tensor,
    residual: Tensor,
    w_enc: Tensor,
    w_dec: Tensor,
    latents: Tensor,
    count: Tensor,
    *,
    scale: float,
    parts: int,
) -> Tensor:
    """Return the largest numbers of operands [kinds, programs]; uninitialised for a single part.

    Arguments are as in `auxk_gradients`.
    """
    programs = programs_at_once(inputs)
    largest = inputs.new_empty(_KINDS, programs)
    if parts == 2:
        (rows, d), d_out = inputs.shape, w_dec.shape[1]
        largest_numbers[(programs,)](
            inputs,
            residual,
            w_enc,
            w_dec,
            latents,
            count,
            largest,
            scale,
            rows,
            d,
            d_out,
            BLOCK=min(power_of_two(max(d, d_out)), 1024),
            num_warps=4,
            **LAUNCH,
        )
    return largest
