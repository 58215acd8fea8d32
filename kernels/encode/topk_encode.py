"""Encode the k largest scores on a GPU: a cheap product rules out columns, few are scored exactly.

Two engines compute the product. The chunked engine multiplies a slice of the latents by cuBLAS into
memory that stays in the L2 cache, where `keep_best` reads it. The fused engine, `hot_groups`,
compares its accumulators with the row's floor and stores only groups of columns that can matter. An
exact result does not depend on the engine; docs/concepts/exact_screening.md has the proof.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..device import (
    LAUNCH,
    interpreting,
    power_of_two,
    programs_at_once,
    thread_registers,
)
from ..round_rows import RoundedRows
from .bounds import column_bounds, row_bounds
from .exact_scores import dot_block, join_parts, score_all, score_candidates
from .list_length import list_length
from .lists import Lists, Screened, block, warps_of
from .screening import Screening

MOST_KEPT = 1024
"""largest k; with more a row's list would not fit the registers of a program"""
_SPLIT = 8
"""parts of a failed row's columns, so that a single such row occupies several programs"""


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    *,
    exact: bool,
    engine: str,
    left: RoundedRows,
    right: RoundedRows,
    select: ModuleType,
) -> tuple[Tensor, Tensor]:
    """Encode the k largest scores of rows by a screen.

    The host waits neither for the GPU nor for a check for NaN. A row that holds NaN or infinity
    gets values of NaN and indices 0 to k - 1, and so do all rows if the weight holds NaN or
    infinity, or the bias NaN.

    Args:
        x: [n, d] float32 or bfloat16, contiguous, at least one row.
        weight: [m, d] of the same dtype, contiguous.
        bias: [m]; -infinity masks a latent; None: no bias.
        scale: [m]; None: no scale.
        k: number of entries per row.
        exact: whether values are float32 scores of the operands; otherwise of the rounded operands.
        engine: "chunked" or "fused".
        left: x, rounded.
        right: weight times scale, rounded for the same product.
        select: module that keeps the lists, `select_triton` or `select_cuda`.

    Returns:
        Values and indices [n, k], in descending order of values, ties by ascending index.
    """
    lists = scored_lists(
        x,
        weight,
        bias,
        scale,
        k,
        exact=exact,
        engine=engine,
        left=left,
        right=right,
        select=select,
    )
    n = x.shape[0]
    values, indices = x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int64)
    select.choose(lists.keys, lists.counts, values, indices)
    return values, indices


def scored_lists(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    *,
    exact: bool,
    engine: str,
    left: RoundedRows,
    right: RoundedRows,
    select: ModuleType,
) -> Lists:
    """Return lists that hold the k largest scores of each row, and others; see `encode`.

    The product screened is that of `left` and `right`; `weight` and `scale` are read for the
    scores of an exact encode.
    """
    (n, d), m = x.shape, weight.shape[0]
    columns = column_bounds(right, bias, scale, raised=exact)
    capacity = capacity_of(m, d, k, left.product if exact else None, block())
    lists = Lists.allocate(n, capacity, x.device)
    bounds = row_bounds(left, columns, d, lists)

    def keep(screened: Screened) -> None:
        select.keep_best(screened, bounds, lists, k, block(), bounded=exact)

    Screening(left, right, columns, bounds, lists.floor, exact, first_phase(m, k), keep).run(engine)
    if exact:
        _score_candidates(x, weight, bias, scale, lists)
        _mend_failed(x, weight, bias, scale, left, right, lists, k)
    else:
        _mend_failed(left.units, right.units, bounds.shift, None, left, right, lists, k)
    return lists


def first_phase(m: int, k: int) -> int:
    """Return the number of columns to screen before floors are raised for the first time."""
    return max(m // 16, k)


def capacity_of(m: int, d: int, k: int, product: str | None, block: int) -> int:
    """Return the length of a list.

    Two lists that have been cut fit into one, as `join_parts` requires.

    Args:
        m: number of latents.
        d: width.
        k: number of entries per row.
        product: product of an exact screen, which keeps more than k, see `list_length`; None if the
            result is not exact.
        block: columns that are appended at a time.
    """
    least = power_of_two(max(2 * k + block, 2 * (k + k // 4)))
    return least if product is None else max(least, list_length(m, d, k, product, block))


def _score_candidates(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, lists: Lists
) -> None:
    n, d = x.shape
    columns, width = dot_block(d)
    score_candidates[(n,)](
        x,
        weight,
        weight if bias is None else bias,
        weight if scale is None else scale,
        lists.keys,
        lists.counts,
        d,
        BIASED=bias is not None,
        SCALED=scale is not None,
        CAPACITY=lists.capacity,
        COLUMNS=columns,
        BLOCK_D=width,
        num_warps=4,
        **LAUNCH,
    )


def _mend_failed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    left: RoundedRows,
    right: RoundedRows,
    lists: Lists,
    k: int,
) -> None:
    """Score all columns of failed rows; most batches have none."""
    n, d = x.shape
    m, device = weight.shape[0], x.device
    columns, width = dot_block(d)
    failed = torch.empty(n, dtype=torch.int32, device=device)
    total = torch.empty((), dtype=torch.int32, device=device)
    programs = programs_at_once(x)
    kept = power_of_two(k + k // 4)
    capacity = power_of_two(2 * k + columns)
    work = torch.empty(programs, capacity, dtype=torch.int64, device=device)
    parts = torch.empty(n * _SPLIT, kept, dtype=torch.int64, device=device)
    part_counts = torch.empty(n * _SPLIT, dtype=torch.int32, device=device)
    score_all[(programs,)](
        x,
        weight,
        weight if bias is None else bias,
        weight if scale is None else scale,
        left.lost,
        right.lost,
        lists.counts,
        failed,
        total,
        work,
        parts,
        part_counts,
        n,
        m,
        d,
        k,
        BIASED=bias is not None,
        SCALED=scale is not None,
        SPLIT=_SPLIT,
        CAPACITY=capacity,
        KEPT=kept,
        COLUMNS=columns,
        BLOCK_D=width,
        LOOK=16 if interpreting() else 1024,
        num_warps=4,
        maxnreg=thread_registers(8),
        **LAUNCH,
    )
    join_parts[(programs,)](
        failed,
        total,
        parts,
        part_counts,
        lists.keys,
        lists.counts,
        k,
        SPLIT=_SPLIT,
        CAPACITY=lists.capacity,
        KEPT=kept,
        num_warps=warps_of(lists.capacity),
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
