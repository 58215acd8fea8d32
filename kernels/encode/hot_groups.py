"""Multiply rows and latents, and store only the groups of columns with a score above the floor."""

import triton
import triton.language as tl

from ..round_rows import inverse_of


@triton.jit
def hot_groups(
    x,
    weight,
    row_multiplier,
    column_multiplier,
    shift,
    norm,
    lost,
    reach,
    spread,
    floor,
    scores,
    maxima,
    rows,
    latents,
    first,
    columns,
    width,
    d,
    PRECISION: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    BOUNDED: tl.constexpr,
    TMA: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Compute one tile of x @ weight[first : first + columns].T + shift, and store its hot groups.

    A group is hot if its maximum, raised by the error bound if BOUNDED, exceeds the row's floor.

    Args:
        x: [rows, d] rounded rows, or a descriptor of them.
        weight: [latents, d] rounded rows, or a descriptor of them.
        row_multiplier: [rows] float32, powers of two by which rows of x were multiplied.
        column_multiplier: [1] float32, power of two by which `weight` was multiplied.
        shift: [latents] float32, see `Bounds`.
        norm: [latents / GROUP] float32, the largest of each group.
        lost: [latents / GROUP] float32, the largest of each group.
        reach: [rows] float32, see `Bounds`.
        spread: [rows] float32, see `Bounds`.
        floor: [rows] float32.
        scores: [rows, width] float32 output: product plus shift of the hot groups; others are not
            written.
        maxima: [rows, width / GROUP] float32 output: maximum of each group, raised if BOUNDED.
        rows: number of rows.
        latents: number of latents.
        first: first column, a multiple of GROUP.
        columns: number of columns.
        width: `columns` rounded up to tiles.
        d: padded width, a multiple of 16.
        PRECISION: input_precision of `tl.dot`.
        MULTIPLIED: whether there are multipliers.
        BOUNDED: whether maxima are raised by the error bound.
        TMA: whether `x` and `weight` are descriptors.
        GROUP: columns per group.
        BLOCK_ROWS: rows per tile.
        BLOCK_COLUMNS: columns per tile.
        BLOCK_D: elements of the width per iteration.
        TOGETHER: height of a band of tiles, see below.
    """
    # Programs run down bands of TOGETHER tiles: neighbours share tiles of both operands, so that
    # these stay in the L2 cache.
    tiles_down, tiles_across = tl.cdiv(rows, BLOCK_ROWS), width // BLOCK_COLUMNS
    program = tl.program_id(0)
    band = program // (TOGETHER * tiles_across)
    height = tl.minimum(tiles_down - band * TOGETHER, TOGETHER)
    within = program % (TOGETHER * tiles_across)
    row0 = (band * TOGETHER + within % height) * BLOCK_ROWS
    column0 = (within // height) * BLOCK_COLUMNS

    row = row0 + tl.arange(0, BLOCK_ROWS)
    column = column0 + tl.arange(0, BLOCK_COLUMNS)
    products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    if TMA:
        for i in range(0, d, BLOCK_D):
            left = x.load([row0, i])
            right = weight.load([first + column0, i])
            products = tl.dot(left, right.T, products, input_precision=PRECISION)
    else:
        depth = tl.arange(0, BLOCK_D)
        # Rows out of range are read from row 0 and their results discarded.
        left_row = tl.where(row < rows, row, 0).to(tl.int64)
        right_row = tl.where(first + column < latents, first + column, 0).to(tl.int64)
        left_at = x + left_row[:, None] * d + depth[None, :]
        right_at = weight + right_row[None, :] * d + depth[:, None]
        for i in range(0, d, BLOCK_D):
            left = tl.load(left_at + i, mask=(depth < d - i)[None, :], other=0.0)
            right = tl.load(right_at + i, mask=(depth < d - i)[:, None], other=0.0)
            products = tl.dot(left, right, products, input_precision=PRECISION)

    if MULTIPLIED:
        multiplier = tl.load(row_multiplier + row, row < rows, other=1.0)
        products *= inverse_of(multiplier * tl.load(column_multiplier))[:, None]
    # Masked latents and columns beyond the last have a shift of -infinity.
    bias = tl.load(shift + first + column, column < columns, other=float("-inf"))
    products = tl.reshape(products + bias[None, :], (BLOCK_ROWS, BLOCK_COLUMNS // GROUP, GROUP))
    largest = tl.max(products, axis=2)
    group = column0 // GROUP + tl.arange(0, BLOCK_COLUMNS // GROUP)
    if BOUNDED:
        real = group * GROUP < columns
        of_all = first // GROUP + group
        largest += (
            tl.load(reach + row, row < rows, other=0.0)[:, None]
            * (tl.load(norm + of_all, real, other=0.0)[None, :])
        )
        largest += (
            tl.load(spread + row, row < rows, other=0.0)[:, None]
            * (tl.load(lost + of_all, real, other=0.0)[None, :])
        )
    hot = largest > tl.load(floor + row, row < rows, other=float("inf"))[:, None]

    groups = width // GROUP
    line = row.to(tl.int64)
    tl.store(maxima + line[:, None] * groups + group[None, :], largest, mask=(row < rows)[:, None])
    lane = tl.arange(0, GROUP)
    at = line[:, None, None] * width + (group[:, None] * GROUP + lane[None, :])[None, :, :]
    tl.store(scores + at, products, mask=hot[:, :, None])
