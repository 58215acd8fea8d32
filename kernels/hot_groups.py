"""The product of rows and latents, of which only groups leave that hold a score worth a look."""

import triton
import triton.language as tl

from .round_rows import inverse_of


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
    """One tile of x @ weight[first : first + columns].T, raised to what a score can at most be.

    `maxima` [rows, width / GROUP] gets the largest score of every group of columns, `scores`
    [rows, width] only the groups whose maximum lies above the row's `floor`. Width is `columns`
    rounded up to tiles. TMA: `x` and `weight` are descriptors instead of addresses. MULTIPLIED: a
    row of `x` was multiplied by its `row_multiplier` [rows], `weight` by `column_multiplier` [1].
    """
    # Neighbouring programs share tiles of both operands, so that these stay in the L2 cache.
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
        # Rows out of range are read from row 0 and thrown away; d is a multiple of 16 here.
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
    # The bias is -infinity where a latent is masked, and beyond the last column.
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
