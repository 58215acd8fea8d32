"""The operands of AuxK's products: the inputs and the dead latents' rows, split into parts."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .auxk_loss import error_moments
from .bfloat16_parts import empty_parts, store_parts, tile, whole_tiles, wide
from .device import LAUNCH, power_of_two, programs_at_once


class Operands(NamedTuple):
    """What the products read; all of whole tiles."""

    inputs: Tensor
    """[parts, rows, width]"""
    encoder: Tensor
    """[parts, places, width]"""
    decoder: Tensor
    """[parts, places, width_out]"""
    bias: Tensor
    """[places]"""
    means: Tensor
    """[tiles of rows, width_out] of the error, if the loss is normalised"""
    deviations: Tensor
    """[tiles of rows, width_out] the error's squared differences from `means`, summed"""


@triton.jit
def split_row(
    source, source_row, real, d, parts, plane, row, width, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Store the parts of one row of `source` [., d] at `row` of `parts`; zeros unless `real`."""
    lane = tl.arange(0, BLOCK)
    for i in range(0, width, BLOCK):
        at = i + lane
        value = tl.load(source + source_row * d + at, at < tl.where(real, d, 0), other=0.0)
        store_parts(parts, plane, row * width + at, value, at < width, PARTS)


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
):
    """Split the inputs and the rows of both weights that belong to the `count` dead `latents`.

    Their biases are gathered. If NORMALISED, the moments of the error are taken as well.
    """
    dead = tl.load(count)
    first, step = tl.program_id(0), tl.num_programs(0)
    plane = wide(places) * width
    plane_out = wide(places) * width_out
    for place in range(first, tl.cdiv(dead, TILE) * TILE, step):
        at = wide(place)
        real = at < dead
        latent = tl.load(latents + at, real, other=0)
        tl.store(bias + at, tl.load(b_enc + latent, real, other=0.0))
        split_row(w_enc, latent, real, d, encoder_parts, plane, at, width, PARTS, BLOCK)
        split_row(w_dec, latent, real, d_out, decoder_parts, plane_out, at, width_out, PARTS, BLOCK)
    plane = wide(padded_rows) * width
    for row in range(first, tl.where(dead > 0, padded_rows, 0), step):
        at = wide(row)
        split_row(inputs, at, at < rows, d, input_parts, plane, at, width, PARTS, BLOCK)
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
    *,
    scale: float,
    normalised: bool,
    parts: int,
) -> Operands:
    """Read all that the products need of their arguments, see `auxk_gradients`.

    Compact copies cost one read of the dead latents' rows. Products would otherwise gather float32
    rows once for every tile of tokens, which is twice the traffic of bfloat16 rows from the L2
    cache, and round or split them every time.
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
    split_operands[(programs_at_once(inputs),)](
        inputs,
        w_enc,
        b_enc,
        w_dec,
        residual,
        scale,
        latents,
        count,
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
        num_warps=4,
        **LAUNCH,
    )
    return found
