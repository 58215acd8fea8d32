"""Gather the operands of AuxK's products, and split them into parts."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, power_of_two, programs_at_once, thread_registers
from ..parts import empty_parts, store_parts, tile, whole_tiles, wide
from .bounds import DECODER, ENCODER, INPUTS, multiplier_at
from .loss import error_moments


class Operands(NamedTuple):
    """The operands of the products; all consist of whole tiles."""

    inputs: Tensor
    """[parts, rows, width] inputs of the encoder"""
    encoder: Tensor
    """[parts, places, width] encoder rows of the dead latents"""
    decoder: Tensor
    """[parts, places, width_out] decoder rows of the dead latents"""
    bias: Tensor
    """[places] float32, biases of the dead latents"""
    means: Tensor
    """[tiles of rows, width_out] means of the error over the rows of a tile, if the loss is
    normalised"""
    deviations: Tensor
    """[tiles of rows, width_out] sums of the squared deviations from `means`"""


@triton.jit
def split_row(
    source,
    source_row,
    real,
    d,
    parts,
    plane,
    row,
    width,
    multiplier,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the parts of one row of `source` [., d] in row `row` of `parts`, or zeros.

    Args:
        source: [., d] float32 rows.
        source_row: int64, row to split.
        real: whether there is such a row; otherwise zeros are stored.
        d: width of `source`.
        parts: [PARTS, ., width] output.
        plane: elements between consecutive parts.
        row: int64, row of the output.
        width: width of the output; zeros are stored from column d on.
        multiplier: see `store_parts`.
        PARTS: 1 or 2.
        BLOCK: elements per iteration.
    """
    lane = tl.arange(0, BLOCK)
    for i in range(0, width, BLOCK):
        at = i + lane
        value = tl.load(source + source_row * d + at, at < tl.where(real, d, 0), other=0.0)
        store_parts(parts, plane, row * width + at, value, multiplier, at < width, PARTS)


@triton.jit
def split_operands(
    inputs,
    w_enc,
    b_enc,
    w_dec,
    residual,
    scale,
    latents,
    count,
    largest,
    input_parts,
    encoder_parts,
    decoder_parts,
    bias,
    means,
    deviations,
    rows,
    padded_rows,
    places,
    d,
    width,
    d_out,
    width_out,
    NORMALISED: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Split the inputs, and the weight rows of the first `count` dead latents, into parts.

    Programs share the rows and tiles. Biases are gathered; if NORMALISED, moments of the error are
    computed.

    Args:
        inputs: [rows, d] float32.
        w_enc: [m, d] float32.
        b_enc: [m] float32.
        w_dec: [m, d_out] float32.
        residual: [rows, d_out] float32, see `error_at`.
        scale: see `error_at`.
        latents: [c] int64, dead latents.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        input_parts: [PARTS, padded_rows, width] output, see `Operands`, as the next five.
        encoder_parts: [PARTS, places, width] output.
        decoder_parts: [PARTS, places, width_out] output.
        bias: [places] output.
        means: [padded_rows / TILE, width_out] output, if NORMALISED.
        deviations: [padded_rows / TILE, width_out] output, if NORMALISED.
        rows: number of tokens.
        padded_rows: `rows` in whole tiles.
        places: c in whole tiles.
        d: width of the inputs.
        width: d in whole tiles.
        d_out: width of the error.
        width_out: d_out in whole tiles.
        NORMALISED: whether moments of the error are computed.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK: elements of a row per iteration.
        COLUMNS: columns per step of the moments.
        LANES: see `largest_of`.
    """
    dead = tl.load(count)
    first, step = tl.program_id(0), tl.num_programs(0)
    of_encoder = multiplier_at(largest, ENCODER, step, LANES, PARTS)
    of_decoder = multiplier_at(largest, DECODER, step, LANES, PARTS)
    plane = wide(places) * width
    plane_out = wide(places) * width_out
    for place in range(first, tl.cdiv(dead, TILE) * TILE, step):
        at = wide(place)
        real = at < dead
        latent = tl.load(latents + at, real, other=0)
        tl.store(bias + at, tl.load(b_enc + latent, real, other=0.0))
        split_row(w_enc, latent, real, d, encoder_parts, plane, at, width, of_encoder, PARTS, BLOCK)
        split_row(
            w_dec,
            latent,
            real,
            d_out,
            decoder_parts,
            plane_out,
            at,
            width_out,
            of_decoder,
            PARTS,
            BLOCK,
        )
    of_inputs = multiplier_at(largest, INPUTS, step, LANES, PARTS)
    plane = wide(padded_rows) * width
    for row in range(first, tl.where(dead > 0, padded_rows, 0), step):
        at = wide(row)
        split_row(inputs, at, at < rows, d, input_parts, plane, at, width, of_inputs, PARTS, BLOCK)
    if NORMALISED:
        across = width_out // COLUMNS
        tiles = tl.where(dead > 0, wide(padded_rows // TILE) * across, 0)
        for number in range(first, tiles, step):
            error_moments(
                residual,
                scale,
                means,
                deviations,
                number // across * TILE,
                number % across * COLUMNS,
                rows,
                d_out,
                width_out,
                TILE,
                COLUMNS,
            )


def operands(
    inputs: Tensor,
    residual: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    latents: Tensor,
    count: Tensor,
    largest: Tensor,
    *,
    scale: float,
    normalised: bool,
    parts: int,
) -> Operands:
    """Gather all that the products need of the arguments of `auxk_gradients`.

    Compact copies cost one read of the dead latents' rows. Otherwise products would gather float32
    rows once for every tile of tokens, and round or split them every time.

    Args:
        inputs: [n, d].
        residual: [n, d_out].
        w_enc: [m, d].
        b_enc: [m].
        w_dec: [m, d_out].
        latents: [c] int64, dead latents.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        scale: factor of `residual`.
        normalised: whether moments of the error are computed.
        parts: 1 or 2.

    Returns:
        Copies of the operands in whole tiles, with moments of the error.
    """
    (n, d), d_out, capacity = inputs.shape, w_dec.shape[1], latents.shape[0]
    rows, width_out = whole_tiles(n), whole_tiles(d_out)
    moments = inputs.new_empty(2, rows // tile(), width_out)
    found = Operands(
        empty_parts(parts, n, d, inputs),
        empty_parts(parts, capacity, d, inputs),
        empty_parts(parts, capacity, d_out, inputs),
        inputs.new_empty(whole_tiles(capacity)),
        *moments,
    )
    programs = programs_at_once(inputs)
    split_operands[(programs,)](
        inputs,
        w_enc,
        b_enc,
        w_dec,
        residual,
        scale,
        latents,
        count,
        largest,
        *found,
        n,
        rows,
        whole_tiles(capacity),
        d,
        whole_tiles(d),
        d_out,
        width_out,
        NORMALISED=normalised,
        PARTS=parts,
        TILE=tile(),
        BLOCK=min(power_of_two(max(d, d_out)), 1024),
        COLUMNS=min(tile(), 32),
        LANES=power_of_two(programs),
        num_warps=4,
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
    return found
