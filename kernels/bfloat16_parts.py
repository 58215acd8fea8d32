"""Split float32 matrices into bfloat16 parts for tensor cores, padded with zeros to whole tiles.

A float32 has 24 significant bits and a bfloat16 has 8. Three parts, each the bfloat16 nearest to
the remainder of the previous ones, add up to the number exactly (apart from parts below 2^-126). A
single part is the number rounded to bfloat16.

The parts of two numbers x and w have nine products, of which six are added. The other three are
together at most (2^-23 + 2^-32) |x| |w|, about the rounding error of one product in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from .device import interpreting
from .round_rows import rounded_to, unit_dtype


def tile() -> int:
    """Return the side of the square tiles of all matrices."""
    return 16 if interpreting() else 128


def whole_tiles(size: int) -> int:
    """Return `size` rounded up to a multiple of the tile."""
    return -(-size // tile()) * tile()


def empty_parts(parts: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """Return an uninitialised matrix of whole tiles, [parts, rows, columns].

    Args:
        parts: 1 or 3.
        rows: number of rows, rounded up to whole tiles.
        columns: number of columns, rounded up to whole tiles.
        like: tensor on the device of the result.
    """
    return like.new_empty(
        parts, whole_tiles(rows), whole_tiles(columns), dtype=unit_dtype("bfloat16")
    )


@triton.jit
def wide(size):
    """Return a size or index as int64: a row times a width may exceed 32 bits."""
    return tl.zeros((), tl.int64) + size


@triton.jit
def store_parts(parts, plane, place, value, mask, PARTS: tl.constexpr):
    """Store float32 values as bfloat16 parts.

    NaN is kept as it is: rounding its bits would carry into the sign.

    Args:
        parts: address of the first part.
        plane: elements between consecutive parts.
        place: offsets of the values from `parts`.
        value: float32 values.
        mask: which of them are stored; None: all.
        PARTS: 1 or 3.
    """
    kept = tl.where(value != value, value, rounded_to(value, 16))
    tl.store(parts + place, kept.to(parts.dtype.element_ty), mask)
    if PARTS == 3:
        rest = value - kept
        kept = rounded_to(rest, 16)
        second = parts + plane
        tl.store(second + place, kept.to(parts.dtype.element_ty), mask)
        kept = rounded_to(rest - kept, 16)
        tl.store(second + plane + place, kept.to(parts.dtype.element_ty), mask)


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

    With three parts the five smaller products are summed before the largest one, each over all of
    `depth`: tensor cores truncate when they add, and would cut the large sum once for each of them.
    Processing one pair of parts at a time keeps the loop as small as the loop of a bfloat16
    product. Everything that is read must be initialised.

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
        PARTS: 1 or 3.
        TILE: side of a tile.
        BLOCK_DEPTH: elements of the depth per iteration.
    """
    lane = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    left_0 = left + row[:, None] * left_row + lane[None, :] * left_depth
    right_0 = right + lane[:, None] * right_depth + column[None, :] * right_column
    sums = tl.zeros((TILE, TILE), tl.float32)
    # Parts of (left, right) in turn: (2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0).
    for pair in range(0 if PARTS == 3 else 5, 6):
        left_part = tl.where(pair == 0, 2, tl.where((pair == 2) | (pair == 3), 1, 0))
        right_part = tl.where(pair == 1, 2, tl.where((pair == 2) | (pair == 4), 1, 0))
        left_at = left_0 + left_part * left_plane
        right_at = right_0 + right_part * right_plane
        for _ in range(0, depth, BLOCK_DEPTH):
            sums = tl.dot(tl.load(left_at), tl.load(right_at), sums, input_precision="ieee")
            left_at += BLOCK_DEPTH * left_depth
            right_at += BLOCK_DEPTH * right_depth
    return sums
