"""How far scores can be from their screening products, by column and by row.

docs/concepts/exact_screening.md derives the bound. A kernel for columns, and one for rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting
from .keep_best import OVERFLOW
from .keys import EMPTY
from .list_length import arithmetic_error
from .lists import GROUP, Bounds, Lists
from .round_rows import RoundedRows

_SAFE = tl.constexpr(1e37)
"""What the size of a row's scores must stay below, so that no float32 on the way overflows."""


class ColumnBounds(NamedTuple):
    """The part of the bounds that depends on columns alone."""

    shift: Tensor
    """[m] float32 added to the product, -infinity where a column is masked"""
    norm: Tensor
    """[m] and"""
    lost: Tensor
    """[m] of the columns, see `RoundedRows`"""
    group_norm: Tensor
    """[m / GROUP, rounded up] the largest `norm` of each group of columns"""
    group_lost: Tensor
    """[m / GROUP, rounded up]"""
    largest: Tensor
    """[2, blocks] the largest norm + lost, or NaN where one is, and the largest bias, of each block
    of columns"""


@triton.jit
def no_nan(value):
    """`value`, or infinity in place of NaN, which a maximum may pass over."""
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
    """The `ColumnBounds` of BLOCK columns.

    A column's shift is its bias times its scale, less its threshold. RAISED: by what the roundings
    of these can take, so that a score is at most what the screen says.
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
    """Reach and spread of BLOCK rows, and where their screen begins.

    LISTS: the state of empty lists, see `keep_best`; rows whose scores might overflow have failed.
    Otherwise only a floor: 0, or NaN, above which everything may be, for such rows; infinity where
    a row or any column is NaN.
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
        # Beside NaN nothing is above a threshold: to look at all columns of all rows would take
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
    """Bound what the columns of a screen contribute.

    Args:
        columns: the weight times its scale, [m, d].
        bias: [m], -infinity where a latent is masked.
        scale: [m].
        threshold: float32 [m], infinity where nothing is above it.
        raised: whether the shift is raised by what its roundings can take; otherwise it is the
            bias times the scale, less the threshold, to the bit.
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
    some = columns.norm  # stands in for an argument that is not looked at
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
    """Bound the scores of rows, and begin their screen.

    Args:
        rows: [n, d].
        columns: the bounds of the columns.
        d: the width.
        start: lists of candidates, which become empty, or a floor [n]; see `bound_rows`.
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
