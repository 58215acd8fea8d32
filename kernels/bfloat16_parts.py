"""Matrices for tensor cores: numbers as bfloat16 parts, in whole tiles filled up with zeros.

A float32 has 24 significant bits and a bfloat16 has 8, so three parts, each the nearest bfloat16 to
what the parts before left, add up to the number exactly (apart from parts below 2^-126). One part
is the number rounded to bfloat16.

Of the nine products of the parts of two numbers x and w six are added. The other three are together
at most (2^-23 + 2^-32) |x| |w|, about the rounding of one product in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from .device import interpreting
from .round_rows import rounded_to, unit_dtype


def tile() -> int:
    """Return the side of the square tiles that all matrices are made of."""
    return 16 if interpreting() else 128


def whole_tiles(size: int) -> int:
    """Return a size rounded up to whole tiles."""
    return -(-size // tile()) * tile()


def empty_parts(parts: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """Return room for a matrix of whole tiles, [parts, rows, columns]."""
    return like.new_empty(
        parts, whole_tiles(rows), whole_tiles(columns), dtype=unit_dtype("bfloat16")
    )


@triton.jit
def wide(size):
    """Return a size or a place in 64 bits: a row times a width can be more than 32 bits hold."""
    return tl.zeros((), tl.int64) + size


@triton.jit
def store_parts(parts, plane, place, value, mask, PARTS: tl.constexpr):
    """Store the parts of float32 values; one part lies `plane` elements behind the other.

    NaN stays NaN; rounding its bits would carry into the sign.
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
    """Return how many tiles there are, in 64 bits."""
    return wide(down) * across


@triton.jit
def tile_corner(number, down, across, TILE: tl.constexpr, TOGETHER: tl.constexpr):
    """Return the first row and the first column of a tile.

    Numbers run down bands of TOGETHER tiles, so that neighbours share operands in the L2 cache.
    What is loaded or stored at a tile's elements should be addressed by the corner plus an arange:
    the distances between a thread's elements are then constants of the code. With computed columns
    each takes registers of its own, more than there are beside the sums.
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
    """Return one tile of left @ right, summed over the first `depth`, a multiple of TILE.

    `left_row` and so on are the strides of the two matrices; all that is read must be initialised.
    Of three parts the five smaller products are summed before the large one, over all of `depth`:
    tensor cores truncate when they add, and would cut the large sum once for each of them. One pair
    of parts at a time keeps the loop as small as that of a product in bfloat16.
    """
    lane = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    left_0 = left + row[:, None] * left_row + lane[None, :] * left_depth
    right_0 = right + lane[:, None] * right_depth + column[None, :] * right_column
    sums = tl.zeros((TILE, TILE), tl.float32)
    # Parts of left and right in turn: 2 and 0, 0 and 2, 1 and 1, 1 and 0, 0 and 1, 0 and 0.
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
