"""Compute the scores of dead latents and the error that they miss, in tiles.

Tiles end at the number of dead latents; programs share them. Matrices are parts in whole tiles, see
`parts`.
"""

import triton
import triton.language as tl

from ..parts import product, store_parts, tile_corner, tile_count, undo, wide
from .bounds import (
    DECODER,
    ENCODER,
    INPUTS,
    SCORES,
    multiplier_at,
    multiplier_of_missed,
)
from .loss import error_at


@triton.jit
def score_dead(
    input_parts,
    encoder_parts,
    bias,
    count,
    largest,
    programs,
    scores,
    score_maxima,
    padded_rows,
    places,
    width,
    SIGNED: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute the scores of the dead latents: inputs @ encoder.T + bias.

    Args:
        input_parts: [PARTS, padded_rows, width].
        encoder_parts: [PARTS, places, width].
        bias: [places] float32.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        programs: number of columns of `largest`.
        scores: [padded_rows, places] float32 output; columns of tiles beyond the dead latents are
            not written.
        score_maxima: [programs] float32 output, the largest score that each program has seen.
        padded_rows: number of tokens in whole tiles.
        places: capacity in whole tiles.
        width: d in whole tiles.
        SIGNED: whether negative scores may be active.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK_DEPTH: see `product`.
        TOGETHER: see `tile_corner`.
        LANES: see `largest_of`.
    """
    dead = tl.load(count)
    down, across = padded_rows // TILE, tl.cdiv(dead, TILE)
    input_plane = wide(padded_rows) * width
    encoder_plane = wide(places) * width
    of_inputs = multiplier_at(largest, INPUTS, programs, LANES, PARTS)
    of_encoder = multiplier_at(largest, ENCODER, programs, LANES, PARTS)
    factor = undo(of_inputs, of_encoder, PARTS)
    most = tl.zeros((), tl.float32)
    for number in range(tl.program_id(0), tile_count(down, across), tl.num_programs(0)):
        first_row, first_place = tile_corner(number, down, across, TILE, TOGETHER)
        lane = tl.arange(0, TILE)
        row = first_row + lane
        sums = product(
            input_parts,
            input_plane,
            width,
            1,
            encoder_parts,
            encoder_plane,
            1,
            width,
            row,
            first_place + lane,
            width,
            PARTS,
            TILE,
            BLOCK_DEPTH,
        )
        sums = factor * sums + tl.load(bias + first_place + lane)[None, :]
        scores_at = scores + first_place + row[:, None] * places
        tl.store(scores_at + lane[None, :], sums)
        if PARTS == 2:
            most = tl.maximum(most, tl.max(tl.abs(sums) if SIGNED else sums))
    if PARTS == 2:
        tl.store(score_maxima + tl.program_id(0), most)


@triton.jit(do_not_specialize=["k", "rows"])
def miss_error(
    active_parts,
    decoder_parts,
    residual,
    scale,
    count,
    largest,
    programs,
    missed_parts,
    missed_maxima,
    squares,
    k,
    rows,
    padded_rows,
    places,
    d_out,
    width_out,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute the error that the dead latents leave: active @ decoder - scale * residual.

    Args:
        active_parts: [PARTS, padded_rows, places], see `keep_largest`.
        decoder_parts: [PARTS, places, width_out].
        residual: [rows, d_out] float32.
        scale: factor of `residual`.
        count: [1] int32, number of dead latents.
        largest: [kinds, programs], see `bounds`.
        programs: number of columns of `largest`.
        missed_parts: [PARTS, padded_rows, width_out] output.
        missed_maxima: [programs] float32 output, the largest number that each program has seen.
        squares: [tiles down, width_out] float32 output, sums of squares over the rows of each tile.
        k: number of dead latents that may be active on a token.
        rows: number of tokens.
        padded_rows: `rows` in whole tiles.
        places: capacity in whole tiles.
        d_out: row stride of `residual`.
        width_out: `d_out` in whole tiles.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK_DEPTH: see `product`.
        TOGETHER: see `tile_corner`.
        LANES: see `largest_of`.
    """
    dead = tl.load(count)
    down, across = padded_rows // TILE, width_out // TILE
    active_plane = wide(padded_rows) * places
    decoder_plane = wide(places) * width_out
    missed_plane = wide(padded_rows) * width_out
    of_active = multiplier_at(largest, SCORES, programs, LANES, PARTS)
    of_decoder = multiplier_at(largest, DECODER, programs, LANES, PARTS)
    factor = undo(of_active, of_decoder, PARTS)
    of_missed = multiplier_of_missed(largest, tl.minimum(k, dead), programs, LANES, PARTS)
    most = tl.zeros((), tl.float32)
    tiles = tl.where(dead > 0, tile_count(down, across), 0)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_row, first_column = tile_corner(number, down, across, TILE, TOGETHER)
        lane = tl.arange(0, TILE)
        row = first_row + lane
        sums = product(
            active_parts,
            active_plane,
            places,
            1,
            decoder_parts,
            decoder_plane,
            width_out,
            1,
            row,
            first_column + lane,
            tl.cdiv(dead, TILE) * TILE,
            PARTS,
            TILE,
            BLOCK_DEPTH,
        )
        # The operands are zero outside of the matrices, and so are the sums.
        error = error_at(residual, scale, first_row, first_column, rows, d_out, TILE, TILE)
        sums = factor * sums - error
        squares_at = squares + first_row // TILE * width_out + first_column
        tl.store(squares_at + lane, tl.sum(sums * sums, axis=0))
        missed_at = missed_parts + first_column + row[:, None] * width_out
        store_parts(missed_at, missed_plane, lane[None, :], sums, of_missed, None, PARTS)
        if PARTS == 2:
            most = tl.maximum(most, tl.max(tl.abs(sums)))
    if PARTS == 2:
        tl.store(missed_maxima + tl.program_id(0), most)
