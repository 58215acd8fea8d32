"""Bound the differences between scores and their screening products, by column and by row.

docs/concepts/exact_screening.md derives the bound.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, interpreting
from ..keys import EMPTY
from ..round_rows import RoundedRows
from .keep_best import OVERFLOW
from .list_length import arithmetic_error
from .lists import GROUP, Bounds, Lists

_SAFE = tl.constexpr(1e37)
"""bound on the size of a row's scores below which no intermediate float32 overflows"""


class ColumnBounds(NamedTuple):
    """The part of the bounds that depends on columns only."""

    shift: Tensor
    """[m] float32, added to the screening product, see `Bounds`; -infinity if a column is masked"""
    norm: Tensor
    """[m] float32, see `RoundedRows`"""
    lost: Tensor
    """[m] float32, see `RoundedRows`"""
    group_norm: Tensor
    """[m / GROUP, rounded up] largest `norm` of each group of columns"""
    group_lost: Tensor
    """[m / GROUP, rounded up] largest `lost` of each group of columns"""
    largest: Tensor
    """[2, blocks] for each block of columns the largest norm + lost, NaN if a norm is NaN, and the
    largest |scaled bias| + |threshold|"""


@triton.jit
def no_nan(value):
    """Replace NaN by infinity, since a maximum may ignore NaN."""
    return tl.where(value == value, value, float("inf"))


@triton.jit
def bound_columns(
    bias,
    scale,
    threshold,
    norm,
    lost,
    shift,
    group_norm,
    group_lost,
    largest,
    columns,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    RAISED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the `ColumnBounds` of BLOCK columns.

    A column's shift is its bias times its scale, less its threshold.

    Args:
        bias: [columns], -infinity for a masked column.
        scale: [columns].
        threshold: [columns] float32.
        norm: [columns] float32, see `RoundedRows`.
        lost: [columns] float32, see `RoundedRows`.
        shift: [columns] float32 output.
        group_norm: [columns / GROUP] float32 output, see `ColumnBounds`.
        group_lost: [columns / GROUP] float32 output.
        largest: [2, programs] float32 output.
        columns: number of columns.
        BIASED: whether there is a bias; otherwise `bias` is not read.
        SCALED: whether there is a scale; otherwise `scale` is not read.
        THRESHOLD: whether there is a threshold; otherwise `threshold` is not read.
        RAISED: whether the shift is raised by a bound on the rounding errors of bias, scale and
            threshold, so that product plus shift errs upwards only.
        GROUP: columns per group.
        BLOCK: columns per program, a multiple of GROUP.
    """
    block = tl.program_id(0)
    column = block * BLOCK + tl.arange(0, BLOCK)
    real = column < columns
    added = tl.zeros((BLOCK,), tl.float32)
    if BIASED:
        added = tl.load(bias + column, real, other=0.0).to(tl.float32)
        if SCALED:
            scaled = added * tl.load(scale + column, real, other=0.0).to(tl.float32)
            added = tl.where(added == float("-inf"), added, scaled)
    size = tl.abs(added)
    if THRESHOLD:
        bar = tl.load(threshold + column, real, other=0.0)
        added -= bar
        size += tl.abs(bar)
    masked = added == float("-inf")
    size = tl.where(masked, 0.0, size)
    if RAISED:
        added = tl.where(masked, added, added + 2.0**-20 * size)
    tl.store(shift + column, added, real)

    length = tl.load(norm + column, real, other=0.0)
    lost_length = tl.load(lost + column, real, other=0.0)
    most = tl.max(no_nan(length + lost_length))
    has_nan = tl.max((length != length).to(tl.int32)) > 0
    tl.store(largest + block, tl.where(has_nan, float("nan"), most))
    tl.store(largest + tl.num_programs(0) + block, tl.max(no_nan(size)))
    group = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    there = group * GROUP < columns
    lengths = tl.reshape(no_nan(length), (BLOCK // GROUP, GROUP))
    tl.store(group_norm + group, tl.max(lengths, axis=1), there)
    lost_lengths = tl.reshape(no_nan(lost_length), (BLOCK // GROUP, GROUP))
    tl.store(group_lost + group, tl.max(lost_lengths, axis=1), there)


@triton.jit
def bound_rows(
    norm,
    lost,
    largest,
    reach,
    spread,
    floor,
    counts,
    floor_keys,
    rows,
    blocks,
    arithmetic,
    LISTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute reach and spread of BLOCK rows, and the initial state of their screen.

    Args:
        norm: [rows] float32, see `RoundedRows`.
        lost: [rows] float32, see `RoundedRows`.
        largest: [2, blocks] float32, see `ColumnBounds`.
        reach: [rows] float32 output, see `Bounds`.
        spread: [rows] float32 output, see `Bounds`.
        floor: [rows] float32 output.
        counts: [rows] int32 output, if LISTS.
        floor_keys: [rows] int64 output, if LISTS.
        rows: number of rows.
        blocks: number of blocks of columns in `largest`.
        arithmetic: relative error of a sum, see `arithmetic_error`.
        LISTS: whether the state is an empty list, see `keep_best`; rows whose scores might overflow
            get the count OVERFLOW. Otherwise it is a floor only: 0; NaN, which rules out no column,
            for rows whose scores might overflow; infinity if the row or the norm of any column is
            NaN.
        BLOCK: rows per program.
    """
    lane = tl.arange(0, BLOCK)
    lengths = tl.zeros((BLOCK,), tl.float32)
    sizes = tl.zeros((BLOCK,), tl.float32)
    not_numbers = tl.zeros((BLOCK,), tl.int32)
    for i in range(0, blocks, BLOCK):
        there = i + lane < blocks
        of_block = tl.load(largest + i + lane, there, other=0.0)
        not_numbers += (of_block != of_block).to(tl.int32)
        lengths = tl.maximum(lengths, no_nan(of_block))
        sizes = tl.maximum(sizes, tl.load(largest + blocks + i + lane, there, other=0.0))

    row = tl.program_id(0) * BLOCK + lane
    real = row < rows
    lost_length = tl.load(lost + row, real, other=0.0)
    length = tl.load(norm + row, real, other=0.0) + lost_length
    tl.store(reach + row, lost_length + arithmetic * length, real)
    tl.store(spread + row, length + arithmetic * length, real)
    safe = (length + 1.0) * (tl.max(lengths) + tl.max(sizes)) < _SAFE
    if LISTS:
        tl.store(floor + row, tl.where(safe, float("-inf"), float("inf")), real)
        tl.store(counts + row, tl.where(safe, 0, OVERFLOW), real)
        tl.store(floor_keys + row, tl.full((BLOCK,), EMPTY, tl.int64), real)
    else:
        # Next to NaN nothing is above a threshold: to look at all columns of all rows would take
        # seconds in every step of a training that has diverged.
        nothing = (tl.sum(not_numbers) > 0) | (length != length)
        start = tl.where(safe, 0.0, float("nan"))
        tl.store(floor + row, tl.where(nothing, float("inf"), start), real)


def column_bounds(
    columns: RoundedRows,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor | None = None,
    *,
    raised: bool = True,
) -> ColumnBounds:
    """Compute the bounds that depend on the columns of a screen.

    Args:
        columns: weight [m, d] times its scale, rounded.
        bias: [m], -infinity for a masked latent; None: no bias.
        scale: [m]; None: no scale.
        threshold: [m] float32, infinity if no score may be above it; None: no threshold.
        raised: whether the shift is raised by a bound on its rounding errors; otherwise it is
            exactly the float32 bias times scale, less the threshold.

    Returns:
        Shifts and norms of the columns.
    """
    m = columns.norm.shape[0]
    block = 64 if interpreting() else 1024
    blocks, groups = triton.cdiv(m, block), triton.cdiv(m, GROUP)
    found = ColumnBounds(
        torch.empty_like(columns.norm),
        columns.norm,
        columns.lost,
        columns.norm.new_empty(groups),
        columns.norm.new_empty(groups),
        columns.norm.new_empty(2, blocks),
    )
    some = columns.norm  # in place of arguments that are not read
    bound_columns[(blocks,)](
        some if bias is None else bias,
        some if scale is None else scale,
        some if threshold is None else threshold,
        columns.norm,
        columns.lost,
        found.shift,
        *found[3:],
        m,
        BIASED=bias is not None,
        SCALED=scale is not None,
        THRESHOLD=threshold is not None,
        RAISED=raised,
        GROUP=GROUP,
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
    return found


def row_bounds(rows: RoundedRows, columns: ColumnBounds, d: int, start: Lists | Tensor) -> Bounds:
    """Compute the bounds of rows, and initialise their screen.

    Args:
        rows: x [n, d], rounded.
        columns: bounds of the columns.
        d: width.
        start: lists of candidates, which become empty, or a floor [n] float32; see `bound_rows`.

    Returns:
        Bounds of rows and columns.
    """
    n = rows.norm.shape[0]
    bounds = Bounds(*columns[:3], torch.empty_like(rows.norm), torch.empty_like(rows.norm))
    if isinstance(start, Lists):
        floor, counts, floor_keys = start.floor, start.counts, start.floor_keys
    else:
        floor = counts = floor_keys = start
    block = 16 if interpreting() else 256
    bound_rows[(triton.cdiv(n, block),)](
        rows.norm,
        rows.lost,
        columns.largest,
        bounds.reach,
        bounds.spread,
        floor,
        counts,
        floor_keys,
        n,
        columns.largest.shape[1],
        arithmetic_error(d),
        LISTS=isinstance(start, Lists),
        BLOCK=block,
        num_warps=4,
        **LAUNCH,
    )
    return bounds
