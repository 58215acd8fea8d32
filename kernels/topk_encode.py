"""TopK encode on the GPU: a cheap product screens the columns, few are scored exactly.

Two engines compute the product. The chunked one lets cuBLAS multiply a slice of the latents into
memory that stays in the L2 cache, and `keep_best` reads it there. The fused one, `hot_groups`,
compares its accumulators with the row's floor and lets only groups of columns leave that can
matter. An exact result does not depend on the engine; docs/concepts/exact_screening.md proves it.
"""

from types import ModuleType

import torch
from torch import Tensor

from .bounds import column_bounds, row_bounds
from .device import (
    LAUNCH,
    interpreting,
    power_of_two,
    programs_at_once,
    thread_registers,
)
from .exact_scores import dot_block, join_parts, score_all, score_candidates
from .list_length import list_length
from .lists import Lists, Screened, block, warps_of
from .round_rows import RoundedRows
from .screening import Screening

MOST_KEPT = 1024
"""The largest k; beyond it a row's list would not fit the registers of a program."""
_SPLIT = 8
"""Parts into which a failed row's columns are cut, so that one such row keeps several programs."""


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
    """Values and indices [n, k] of contiguous float32 or bfloat16 rows, at least one.

    `left` is x and `right` is weight * scale, rounded for one product; `select` keeps the lists,
    `select_triton` or `select_cuda`. Nothing here waits for the GPU, nor looks for NaN: a row with
    NaN or infinity in it gets NaN as its values and 0 to k - 1 as indices, and so do all rows where
    the weight or the bias holds NaN.
    """
    (n, d), m = x.shape, weight.shape[0]
    values, indices = x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int64)
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
    select.choose(lists.keys, lists.counts, values, indices)
    return values, indices


def first_phase(m: int, k: int) -> int:
    """How many columns are screened before floors are first raised."""
    return max(m // 16, k)


def capacity_of(m: int, d: int, k: int, product: str | None, block: int) -> int:
    """How long lists may grow: an exact screen by `product` keeps more than k, see `list_length`.

    Two lists that were cut fit one, as they must where `join_parts` joins them.
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
    """Score the rows in full whose screen failed; on most batches there are none."""
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
