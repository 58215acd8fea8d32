"""TopK encode on the GPU: a cheap product screens the columns, few are scored exactly.

Two engines compute the product. The chunked one lets cuBLAS multiply a slice of the latents into
memory that stays in the L2 cache, and `keep_best` reads it there. The fused one, `hot_groups`,
compares its accumulators with the row's floor and lets only groups of columns leave that can
matter. An exact result does not depend on the engine; CONTRIBUTING.md has the proof of the bound.
"""

from types import ModuleType

import torch
from torch import Tensor

from .device import LAUNCH, interpreting, power_of_two, programs_at_once
from .exact_scores import join_parts, list_failed, score_all, score_candidates
from .lists import Lists
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
    `select_triton` or `select_cuda`. Nothing here waits for the GPU.
    """
    n, d = x.shape
    values, indices = x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int64)
    shift = _shift(bias, scale, right.norm)
    screening = Screening.begin(left, right, shift, d, k, select, exact=exact)
    screening.run(engine)
    lists = screening.lists
    if exact:
        _score_candidates(x, weight, bias, scale, lists)
        _mend_failed(x, weight, bias, scale, lists, k)
    else:
        _mend_failed(left.units, right.units, shift, None, lists, k)
    select.choose(lists, values, indices)
    return values, indices


def _shift(bias: Tensor | None, scale: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the products of a column: its bias times its scale, -infinity if masked."""
    if bias is None:
        return torch.zeros_like(like)
    shift = bias.float()
    if scale is not None:
        shift = torch.where(shift == -torch.inf, shift, shift * scale.float())
    return shift


def _dot_block(d: int) -> tuple[int, int]:
    """Columns and width of the blocks in which exact scores are summed, the same in all kernels."""
    width = min(power_of_two(d), 16 if interpreting() else 256)
    return (16, width)


def _score_candidates(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, lists: Lists
) -> None:
    n, d = x.shape
    columns, width = _dot_block(d)
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
    lists: Lists,
    k: int,
) -> None:
    """Score the rows in full whose screen failed; on most batches there are none."""
    n, d = x.shape
    m, device = weight.shape[0], x.device
    columns, width = _dot_block(d)
    failed = torch.empty(n, dtype=torch.int32, device=device)
    total = torch.empty((), dtype=torch.int32, device=device)
    list_failed[(1,)](
        lists.counts,
        failed,
        total,
        n,
        k,
        BLOCK=16 if interpreting() else 1024,
        num_warps=4,
        **LAUNCH,
    )
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
        failed,
        total,
        work,
        parts,
        part_counts,
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
        num_warps=4,
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
        num_warps=lists.warps,
        **LAUNCH,
    )
