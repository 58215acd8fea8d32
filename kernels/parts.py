"""Split float32 matrices into parts for tensor cores, padded with zeros to whole tiles.

One part is the number rounded to bfloat16. Two parts are float16: the matrix is multiplied by a
power of two that brings a bound on its numbers between 2^13 and 2^14; the first part is the float16
nearest to the multiplied number, the second the float16 nearest to the remainder. They leave at
most 2^-22 of a number, or 2^-38 of the bound where that is more, since float16 ends at 2^-24. A
number beyond the range, from 2^75 on, becomes infinite.

The parts of two numbers x and w have four products, of which three are added. The error of the
parts and of the product is at most (3 * 2^-22 + 2^-42) |x| |w|.
"""

import triton
import triton.language as tl
from torch import Tensor

from .device import interpreting
from .round_rows import inverse_of, rounded_to, unit_dtype


def tile() -> int:
    """Return the side of the square tiles of all matrices."""
    return 16 if interpreting() else 128


def whole_tiles(size: int) -> int:
    """Return `size` rounded up to a multiple of the tile."""
    return -(-size // tile()) * tile()


def empty_parts(parts: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """Return an uninitialised matrix of whole tiles, [parts, rows, columns].

    Args:
        parts: 1 or 2.
        rows: number of rows, rounded up to whole tiles.
        columns: number of columns, rounded up to whole tiles.
        like: tensor on the device of the result.
    """
    return like.new_empty(
        parts,
        whole_tiles(rows),
        whole_tiles(columns),
        dtype=unit_dtype("bfloat16" if parts == 1 else "float16"),
    )


@triton.jit
def wide(size):
    """Return a size or index as int64: a row times a width may exceed 32 bits."""
    return tl.zeros((), tl.int64) + size


@triton.jit
def store_parts(parts, plane, place, value, multiplier, mask, PARTS: tl.constexpr):
    """Store float32 values as parts.

    NaN is kept as it is: rounding its bits to bfloat16 would carry into the sign.

    Args:
        parts: address of the first part.
        plane: elements between the parts.
        place: offsets of the values from `parts`.
        value: float32 values.
        multiplier: power of two by which the values are multiplied, if there are two parts.
        mask: which of them are stored; None: all.
        PARTS: 1 or 2.
    """
    if PARTS == 1:
        kept = tl.where(value != value, value, rounded_to(value, 16))
        tl.store(parts + place, kept.to(parts.dtype.element_ty), mask)
    else:
        scaled = value * multiplier
        high = scaled.to(tl.float16)
        low = (scaled - high.to(tl.float32)).to(tl.float16)
        tl.store(parts + place, high.to(parts.dtype.element_ty), mask)
        tl.store(parts + plane + place, low.to(parts.dtype.element_ty), mask)


@triton.jit
def undo(left_multiplier, right_multiplier, PARTS: tl.constexpr):
    """Return the factor that removes the multipliers of both matrices from a product."""
    factor = 1.0
    if PARTS == 2:
        factor = inverse_of(left_multiplier * right_multiplier)
    return factor


@triton.jit
def tile_count(down, across):
    """Return the number of tiles as int64."""
    return wide(down) * across


@triton.jit
def tile_corner(number, down, across, TILE: tl.constexpr, TOGETHER: tl.constexpr):
    """Return the first row and the first column of tile `number`.

    Numbers run down bands of TOGETHER tiles, so that neighbouring programs share operands in the L2
    cache. Elements of a tile should be addressed by the corner plus an arange: the distances
    between a thread's elements are then constants of the code. Computed columns would each take
    registers of their own, more than are left beside the sums.

    Args:
        number: index of the tile, less than down * across.
        down: number of tiles from top to bottom.
        across: number of tiles from left to right.
        TILE: side of a tile.
        TOGETHER: height of a band, in tiles.
    """
    in_band = TOGETHER * wide(across)
    band = number // in_band
    height = tl.minimum(down - band * TOGETHER, TOGETHER)
    within = number % in_band
    return (band * TOGETHER + within % height) * TILE, (within // height) * TILE


@triton.jit
def product(
    left,
    left_plane,
    left_row,
    left_depth,
    right,
    right_plane,
    right_depth,
    right_column,
    row,
    column,
    depth,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Return one float32 tile [TILE, TILE] of left @ right, summed over the first `depth` elements.

    With two parts, the products of BLOCK_DEPTH elements are added up by themselves, the smaller
    ones first, and then to the sum: tensor cores truncate when they add, always towards zero, while
    float32 additions round to nearest. Everything that is read must be initialised.

    Args:
        left: address of the left matrix's first part.
        left_plane: elements between its parts.
        left_row: stride of its rows.
        left_depth: stride of its depth.
        right: address of the right matrix's first part.
        right_plane: elements between its parts.
        right_depth: stride of its depth.
        right_column: stride of its columns.
        row: [TILE] rows of the left matrix.
        column: [TILE] columns of the right matrix.
        depth: length of the sums, a multiple of TILE.
        PARTS: 1 or 2.
        TILE: side of a tile.
        BLOCK_DEPTH: elements of the depth per iteration.
    """
    lane = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    left_at = left + row[:, None] * left_row + lane[None, :] * left_depth
    right_at = right + lane[:, None] * right_depth + column[None, :] * right_column
    sums = tl.zeros((TILE, TILE), tl.float32)
    for _ in range(0, depth, BLOCK_DEPTH):
        left_high = tl.load(left_at)
        right_high = tl.load(right_at)
        if PARTS == 1:
            sums = tl.dot(left_high, right_high, sums, input_precision="ieee")
        else:
            left_low = tl.load(left_at + left_plane)
            right_low = tl.load(right_at + right_plane)
            some = tl.dot(left_low, right_high, input_precision="ieee")
            some = tl.dot(left_high, right_low, some, input_precision="ieee")
            some = tl.dot(left_high, right_high, some, input_precision="ieee")
            sums += some
        left_at += BLOCK_DEPTH * left_depth
        right_at += BLOCK_DEPTH * right_depth
    return sums
