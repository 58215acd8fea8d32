"""Of every row the k largest scores, all others set to zero: which dead latents are active."""

import triton
import triton.language as tl
from torch import Tensor

from .device import LAUNCH, interpreting
from .keys import key_of, ordered


@triton.jit
def keys_at(scores, row, start, columns, BLOCK: tl.constexpr):
    """The scores of a row from `start` on, their keys, and which are there."""
    at = start + tl.arange(0, BLOCK)
    score = tl.load(scores + row * columns + at, at < columns, other=float("-inf"))
    return score, key_of(score, at), at < columns


@triton.jit
def keep_largest_of_row(scores, columns, k, SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Bisect for the k-th key; a row is read some thirty times, while it is near."""
    row = tl.program_id(0).to(tl.int64)
    # Below every key of a score above -infinity, or above zero.
    if SIGNED:
        low = (ordered(tl.full((), float("-inf"), tl.float32)).to(tl.int64) + 1) << 32
    else:
        low = tl.full((), 1 << 32, tl.int64)
    high = tl.full((), 2**63 - 1, tl.int64)
    above = tl.zeros((), tl.int32)
    for start in range(0, columns, BLOCK):
        score, key, real = keys_at(scores, row, start, columns, BLOCK)
        above += tl.sum((real & (key >= low)).to(tl.int32))
    while (above > k) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)
        reached = tl.zeros((), tl.int32)
        for start in range(0, columns, BLOCK):
            score, key, real = keys_at(scores, row, start, columns, BLOCK)
            reached += tl.sum((real & (key >= middle)).to(tl.int32))
        if reached >= k:
            low = middle
            above = reached
        else:
            high = middle
    for start in range(0, columns, BLOCK):
        score, key, real = keys_at(scores, row, start, columns, BLOCK)
        place = row * columns + start + tl.arange(0, BLOCK)
        tl.store(scores + place, tl.where(key >= low, score, 0.0), real)


def keep_largest(scores: Tensor, k: int, *, signed: bool) -> None:
    """`reference.keep_largest` of contiguous float32 scores [n, columns]."""
    n, columns = scores.shape
    if n and columns:
        keep_largest_of_row[(n,)](
            scores,
            columns,
            k,
            SIGNED=signed,
            BLOCK=16 if interpreting() else 2048,
            num_warps=8,
            **LAUNCH,
        )
