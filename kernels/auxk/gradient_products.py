"""Compute the gradients of the auxiliary loss, in tiles that end at the number of dead latents.

Programs share the tiles. Matrices are parts in whole tiles, see `parts`.
"""

import triton
import triton.language as tl

from ..parts import product, store_parts, tile_corner, tile_count, undo, wide
from .bounds import (
    DECODER,
    INPUTS,
    SCORES,
    multiplier_at,
    multiplier_of_gradients,
    multiplier_of_missed,
)
from .loss import loss_weight, total_columns


@triton.jit(do_not_specialize=["k", "rows"])
def score_gradients(
    missed_parts,
    decoder_parts,
    active_parts,
    count,
    largest,
    programs,
    gradient_parts,
    bias_sums,
    squares,
    means,
    deviations,
    totals,
    k,
    rows,
    padded_rows,
    places,
    d_out,
    width_out,
    NORMALISED: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    LANES: tl.constexpr,
    LINES: tl.constexpr,
):
    """Compute missed @ decoder.T for active latents, zero for others.

    This is the gradient of the scores, except for the weight of the loss and the factor 2 of the
    square. Beside the product, programs total the columns of squares and of the error's moments.

    Args:
        missed_parts: [PARTS, padded_rows, width_out], from `miss_error`.
        decoder_parts: [PARTS, places, width_out].
        active_parts: [PARTS, padded_rows, places], see `keep_largest`.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        programs: number of columns of `largest`.
        gradient_parts: [PARTS, padded_rows, places] output.
        bias_sums: [tiles down, places] float32 output, sums over the rows of each tile.
        squares: see `total_columns`, as the next three.
        means: [tiles down, width_out] float32, if NORMALISED.
        deviations: [tiles down, width_out] float32, if NORMALISED.
        totals: [2, width_out / TILE] float32 output.
        k: number of dead latents that may be active on a token.
        rows: number of tokens.
        padded_rows: `rows` in whole tiles.
        places: capacity in whole tiles.
        d_out: width of the decoder.
        width_out: d_out in whole tiles.
        NORMALISED: whether the loss is divided by the variance of the error.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK_DEPTH: see `product`.
        TOGETHER: see `tile_corner`.
        LANES: see `largest_of`.
        LINES: see `total_columns`.
    """
    dead = tl.load(count)
    down, blocks = padded_rows // TILE, width_out // TILE
    for block in range(tl.program_id(0), tl.where(dead > 0, blocks, 0), tl.num_programs(0)):
        total_columns(
            squares,
            means,
            deviations,
            totals,
            block,
            blocks,
            rows,
            down,
            width_out,
            NORMALISED,
            TILE,
            LINES,
        )
    across = tl.cdiv(dead, TILE)
    missed_plane = wide(padded_rows) * width_out
    decoder_plane = wide(places) * width_out
    plane = wide(padded_rows) * places
    of_missed = multiplier_of_missed(largest, tl.minimum(k, dead), programs, LANES, PARTS)
    of_decoder = multiplier_at(largest, DECODER, programs, LANES, PARTS)
    factor = undo(of_missed, of_decoder, PARTS)
    of_gradients = multiplier_of_gradients(largest, d_out, programs, LANES, PARTS)
    for number in range(tl.program_id(0), tile_count(down, across), tl.num_programs(0)):
        first_row, first_place = tile_corner(number, down, across, TILE, TOGETHER)
        lane = tl.arange(0, TILE)
        row = first_row + lane
        sums = product(
            missed_parts,
            missed_plane,
            width_out,
            1,
            decoder_parts,
            decoder_plane,
            1,
            width_out,
            row,
            first_place + lane,
            width_out,
            PARTS,
            TILE,
            BLOCK_DEPTH,
        )
        active_at = active_parts + first_place + row[:, None] * places
        active = tl.load(active_at + lane[None, :]).to(tl.float32) != 0.0
        sums = tl.where(active, factor * sums, 0.0)
        bias_sums_at = bias_sums + first_row // TILE * places + first_place
        tl.store(bias_sums_at + lane, tl.sum(sums, axis=0))
        # Stored last: splitting needs the registers of the sums for the remainders of the parts.
        gradient_at = gradient_parts + first_place + row[:, None] * places
        store_parts(gradient_at, plane, lane[None, :], sums, of_gradients, None, PARTS)


@triton.jit(do_not_specialize=["k", "rows"])
def weight_gradients(
    input_parts,
    active_parts,
    missed_parts,
    gradient_parts,
    bias_sums,
    totals,
    count,
    largest,
    programs,
    loss,
    encoder_gradient,
    bias_gradient,
    decoder_gradient,
    coefficient,
    k,
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
    BLOCK_DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    LANES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Compute the loss and its gradients for the rows and biases of the dead latents.

    Rows beyond the dead latents are not written.

    Args:
        input_parts: [PARTS, padded_rows, width].
        active_parts: [PARTS, padded_rows, places], see `keep_largest`.
        missed_parts: [PARTS, padded_rows, width_out], from `miss_error`.
        gradient_parts: [PARTS, padded_rows, places], from `score_gradients`.
        bias_sums: [tiles down, places] float32, from `score_gradients`.
        totals: [2, width_out / TILE] float32, from `score_gradients`.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        programs: number of columns of `largest`.
        loss: [] float32 output, 0 if no latent is dead.
        encoder_gradient: [c, d] float32 output.
        bias_gradient: [c] float32 output.
        decoder_gradient: [c, d_out] float32 output.
        coefficient: see `loss_weight`.
        k: see `loss_weight`.
        rows: number of tokens.
        padded_rows: `rows` in whole tiles.
        places: capacity c in whole tiles.
        d: width of the encoder.
        width: d in whole tiles.
        d_out: width of the decoder.
        width_out: d_out in whole tiles.
        NORMALISED: see `loss_weight`.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK_DEPTH: see `product`.
        TOGETHER: see `tile_corner`.
        LANES: see `largest_of`.
        BLOCKS: see `loss_weight`.
    """
    dead = tl.load(count)
    weight = 0.0
    if dead > 0:
        weight = loss_weight(
            totals, width_out // TILE, dead, rows, coefficient, k, NORMALISED, BLOCKS
        )
    if tl.program_id(0) == 0:
        value = 0.0
        if dead > 0:
            lane = tl.arange(0, BLOCKS)
            value = weight * tl.sum(tl.load(totals + lane, lane < width_out // TILE, other=0.0))
        tl.store(loss, value)
    down = tl.cdiv(dead, TILE)
    for block in range(tl.program_id(0), down, tl.num_programs(0)):
        place = block * TILE + tl.arange(0, TILE)
        sums_at = bias_sums + place
        bias = tl.zeros((TILE,), tl.float32)
        for _ in range(padded_rows // TILE):
            bias += tl.load(sums_at)
            sums_at += places
        tl.store(bias_gradient + place, 2.0 * weight * bias, place < dead)
    across = width // TILE + width_out // TILE
    plane = wide(padded_rows) * places
    of_gradients = multiplier_of_gradients(largest, d_out, programs, LANES, PARTS)
    of_inputs = multiplier_at(largest, INPUTS, programs, LANES, PARTS)
    of_active = multiplier_at(largest, SCORES, programs, LANES, PARTS)
    of_missed = multiplier_of_missed(largest, tl.minimum(k, dead), programs, LANES, PARTS)
    for number in range(tl.program_id(0), tile_count(down, across), tl.num_programs(0)):
        first_place, first_column = tile_corner(number, down, across, TILE, TOGETHER)
        learns_encoder = first_column < width
        if learns_encoder:
            left, right, out = gradient_parts, input_parts, encoder_gradient
        else:
            left, right, out = active_parts, missed_parts, decoder_gradient
        factor = tl.where(
            learns_encoder,
            undo(of_gradients, of_inputs, PARTS),
            undo(of_active, of_missed, PARTS),
        )
        right_width = tl.where(learns_encoder, width, width_out)
        out_width = tl.where(learns_encoder, d, d_out)
        first_column -= tl.where(learns_encoder, 0, width)
        lane = tl.arange(0, TILE)
        place = first_place + lane
        sums = product(
            left,
            plane,
            1,
            places,
            right,
            wide(padded_rows) * right_width,
            right_width,
            1,
            place,
            first_column + lane,
            padded_rows,
            PARTS,
            TILE,
            BLOCK_DEPTH,
        )
        real = (place < dead)[:, None] & (lane < out_width - first_column)[None, :]
        out_at = out + first_column + place[:, None] * out_width
        tl.store(out_at + lane[None, :], 2.0 * weight * (factor * sums), real)
