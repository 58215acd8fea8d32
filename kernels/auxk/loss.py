"""Compute the sum of squares and the variance of the error, which determine the auxiliary loss."""

import triton
import triton.language as tl


@triton.jit
def error_at(
    residual,
    scale,
    first_row,
    first_column,
    rows,
    d_out,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return a tile [TILE, COLUMNS] of the error, zero outside of it.

    Args:
        residual: [rows, d_out] float32.
        scale: factor of the residual.
        first_row: first row of the tile, int64, see `tile_corner`.
        first_column: first column of the tile, int64.
        rows: number of rows.
        d_out: width.
        TILE: rows of the tile.
        COLUMNS: columns of the tile.
    """
    line, lane = tl.arange(0, TILE), tl.arange(0, COLUMNS)
    has_row = line < (rows - first_row).to(tl.int32)
    has_column = lane < (d_out - first_column).to(tl.int32)
    residual_at = residual + first_column + (first_row + line)[:, None] * d_out
    real = has_row[:, None] & has_column[None, :]
    return scale * tl.load(residual_at + lane[None, :], real, other=0.0)


@triton.jit
def error_moments(
    residual,
    scale,
    means,
    deviations,
    first_row,
    first_column,
    rows,
    d_out,
    width_out,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store the means of the error over the rows of a tile, and the sums of squared deviations.

    Args:
        residual: see `error_at`.
        scale: see `error_at`.
        means: [tiles down, width_out] float32 output.
        deviations: [tiles down, width_out] float32 output.
        first_row: see `error_at`.
        first_column: see `error_at`.
        rows: number of rows.
        d_out: width.
        width_out: padded width.
        TILE: rows of the tile.
        COLUMNS: columns of the tile.
    """
    error = error_at(residual, scale, first_row, first_column, rows, d_out, TILE, COLUMNS)
    row, column = first_row + tl.arange(0, TILE), first_column + tl.arange(0, COLUMNS)
    line = first_row // TILE
    mean = tl.sum(error, axis=0) / tl.minimum(rows - first_row, TILE)
    difference = tl.where((row < rows)[:, None], error - mean[None, :], 0.0)
    tl.store(means + line * width_out + column, mean)
    tl.store(deviations + line * width_out + column, tl.sum(difference * difference, axis=0))


@triton.jit
def total_columns(
    squares,
    means,
    deviations,
    totals,
    block,
    blocks,
    rows,
    down,
    width_out,
    NORMALISED: tl.constexpr,
    TILE: tl.constexpr,
    LINES: tl.constexpr,
):
    """Total the columns of one block over all tiles of rows.

    Args:
        squares: [down, width_out] float32, from `miss_error`.
        means: [down, width_out] float32, from `error_moments`, if NORMALISED.
        deviations: [down, width_out] float32, from `error_moments`, if NORMALISED.
        totals: [2, blocks] float32 output: sum of squares, and if NORMALISED the sum of squared
            deviations of the error from its mean over all rows.
        block: the block of TILE columns.
        blocks: number of blocks.
        rows: number of rows.
        down: number of tiles of rows.
        width_out: padded width.
        NORMALISED: whether the loss is divided by the variance of the error.
        TILE: side of a tile.
        LINES: tiles per iteration.
    """
    column = (block * TILE + tl.arange(0, TILE))[None, :]
    line = tl.arange(0, LINES)[:, None].to(tl.int64)
    total = tl.zeros((LINES, TILE), tl.float32)
    for start in range(0, down, LINES):
        at = (start + line) * width_out + column
        total += tl.load(squares + at, (start + line) < down, other=0.0)
    tl.store(totals + block, tl.sum(total))
    if NORMALISED:
        weighted = tl.zeros((LINES, TILE), tl.float32)
        for start in range(0, down, LINES):
            at = (start + line) * width_out + column
            height = tl.minimum(rows - (start + line) * TILE, TILE)
            weighted += height * tl.load(means + at, (start + line) < down, other=0.0)
        mean = tl.sum(weighted, axis=0)[None, :] / rows
        spread = tl.zeros((LINES, TILE), tl.float32)
        for start in range(0, down, LINES):
            there = (start + line) < down
            at = (start + line) * width_out + column
            height = tl.minimum(rows - (start + line) * TILE, TILE)
            difference = tl.where(there, tl.load(means + at, there, other=0.0) - mean, 0.0)
            spread += tl.load(deviations + at, there, other=0.0) + height * difference * difference
        tl.store(totals + blocks + block, tl.sum(spread))


@triton.jit
def loss_weight(
    totals,
    blocks,
    dead,
    rows,
    coefficient,
    k,
    NORMALISED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Return the factor of the sum of squares in the loss, see `saefast.train.auxk`.

    Args:
        totals: [2, blocks] float32, from `total_columns`.
        blocks: number of blocks of columns.
        dead: number of dead latents, not 0.
        rows: number of rows.
        coefficient: coefficient of the loss.
        k: number of dead latents that may be active on a token.
        NORMALISED: whether the loss is divided by the variance of the error.
        BLOCKS: power of two, at least `blocks`.
    """
    if NORMALISED:
        lane = tl.arange(0, BLOCKS)
        spread = tl.sum(tl.load(totals + blocks + lane, lane < blocks, other=0.0))
        weight = tl.where(spread > 0.0, coefficient / tl.where(spread > 0.0, spread, 1.0), 0.0)
    else:
        weight = tl.minimum(dead / k, 1.0) * (coefficient / rows)
    return weight
