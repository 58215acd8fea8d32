"""Encode the k scores of largest absolute value: those of largest value, joined with the smallest.

The smallest scores are the largest of the scores times minus one. Multiplication by minus one is
exact, and so is the negation of rounded rows: both encodes compute the same scores, up to their
sign.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import LAUNCH, power_of_two, thread_registers
from ..keys import EMPTY, ordered, score_of
from ..round_rows import RoundedRows
from .lists import warps_of
from .topk_encode import scored_lists


@triton.jit
def join_signs(
    largest,
    largest_at,
    negated,
    negated_at,
    bias,
    values,
    indices,
    k,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the k scores of largest absolute value of one row, in order; one program per row.

    A score is taken from one of the two codes, by its sign. A score of -infinity comes last, as do
    masked latents, and NaN first. The key of a score ends in its index and in the code from which
    it comes.

    Args:
        largest: [rows, k] float32, the k largest scores of each row.
        largest_at: [rows, k] int64, their columns.
        negated: [rows, k] float32, the k largest scores times minus one.
        negated_at: [rows, k] int64, their columns.
        bias: [columns], -infinity for a masked column, if BIASED.
        values: [rows, k] output, scores in descending order of their absolute value.
        indices: [rows, k] int64 output, their columns.
        k: number of entries.
        BIASED: whether columns may be masked.
        WIDTH: power of two, at least k.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, 2 * WIDTH)
    below = place >= WIDTH
    at = row * k + place % WIDTH
    used = place % WIDTH < k
    above_zero = tl.load(largest + at, used & ~below, other=0.0)
    below_zero = tl.load(negated + at, used & below, other=0.0)
    index = tl.load(largest_at + at, used & ~below, other=0)
    index += tl.load(negated_at + at, used & below, other=0)
    # NaN is in both codes, as are zeros if a code has room for them.
    here = used & ~below & ~(above_zero < 0.0)
    if BIASED:
        lowest = used & (above_zero == float("-inf"))
        here |= lowest & (tl.load(bias + index, lowest, other=0.0) == float("-inf"))
    rank = tl.where(below_zero == float("inf"), float("-inf"), below_zero)
    rank = tl.where(below, rank, above_zero)
    here |= used & below & (below_zero > 0.0)
    tie = ((0x7FFFFFFF - index) << 1) | below.to(tl.int64)
    keys = tl.where(here, (ordered(rank).to(tl.int64) << 32) | tie, EMPTY)
    best = tl.sort(keys, descending=True)
    score = score_of(best)
    score = tl.where((best & 1) == 1, -tl.abs(score), score)
    # Every row has k keys, unless sums of the opposite sign were rounded differently.
    filled = best != EMPTY
    out = row * k + place
    tl.store(values + out, tl.where(filled, score, 0.0).to(values.dtype.element_ty), place < k)
    tl.store(indices + out, tl.where(filled, 0x7FFFFFFF - ((best >> 1) & 0x7FFFFFFF), 0), place < k)


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    k: int,
    *,
    left: RoundedRows,
    select: ModuleType,
    **screen: Any,
) -> tuple[Tensor, Tensor]:
    """Encode the k scores of largest absolute value by a screen, see `topk_encode.encode`.

    Args:
        x: [n, d] float32 or bfloat16, contiguous, at least one row.
        weight: [m, d] of the same dtype, contiguous.
        bias: [m]; -infinity masks a latent; None: no bias.
        scale: [m]; None: no scale.
        k: number of entries per row.
        left: x, rounded.
        select: module that keeps the lists, `select_triton` or `select_cuda`.
        screen: the other arguments of `topk_encode.encode`.

    Returns:
        Values, with their sign, and indices [n, k], in descending order of absolute values, ties by
        ascending index. A score that overflows to -infinity is ranked as if it were masked; of more
        than k such scores in a row only k are known, so that others may be missing.
    """
    n, m = x.shape[0], weight.shape[0]
    opposite = weight.new_full((m,), -1.0) if scale is None else -scale
    codes = []
    for factors, rows in ((scale, left), (opposite, replace(left, units=-left.units))):
        lists = scored_lists(x, weight, bias, factors, k, left=rows, select=select, **screen)
        code = (
            torch.empty(n, k, dtype=torch.float32, device=x.device),
            torch.empty(n, k, dtype=torch.int64, device=x.device),
        )
        select.choose(lists.keys, lists.counts, *code)
        codes.append(code)
    values, indices = x.new_empty(n, k), torch.empty_like(codes[0][1])
    width = power_of_two(k)
    join_signs[(n,)](
        *codes[0],
        *codes[1],
        weight if bias is None else bias,
        values,
        indices,
        k,
        BIASED=bias is not None,
        WIDTH=width,
        num_warps=warps_of(2 * width),
        maxnreg=thread_registers(16),
        **LAUNCH,
    )
    return values, indices
