"""BatchTopK (Bussmann et al., 2412.06410): the n * k largest positive values of a whole batch.

Some rows get more latents than others. What all rows share is a threshold, which changes little
from step to step: with a guess of it, slightly too low, one pass of `threshold_encode` finds
everything that can be kept. Without one, or where it fails, a `topk_encode` gives a bound to start
from. The result does not depend on it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.ops import checks
from saefast.ops.encode_packed import Packed, encode_packed, threshold_packed
from saefast.ops.topk_encode import PRECISIONS
from saefast.types import SparseCode, ThresholdCode

_LOWER = 1 - 2.0**-10


class BatchCode(NamedTuple):
    """The active latents of a batch."""

    code: SparseCode
    """as wide as the largest row; the others end in values and indices of zero"""
    threshold: Tensor
    """[] the smallest value kept; zero if there is none"""
    counts: Tensor
    """[n] int64 how many latents of each row are kept"""


def batch_topk(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    *,
    guess: float | None = None,
    width: int | None = None,
    precision: str = "exact",
    packed: Packed | None = None,
) -> BatchCode:
    """The n * k largest positive values of x @ weight.T + bias; of equal ones the first in memory.

    Args:
        x: [n, d] rows to encode; must be finite, float32 or float64.
        weight: [m, d] one row per latent.
        bias: [m]; -infinity masks a latent.
        k: how many latents to keep per row, on average. If fewer are positive, all of those.
        guess: something probably below the threshold, but not by far. Decides on the time alone.
        width: how many latents the largest row will probably have. Decides on the time alone.
        precision: "exact" or "bf16", as in `topk_encode`.
        packed: the weight as `repacked` left it.
    """
    _check(x, weight, bias, k, guess, width, precision)
    m = weight.shape[0]
    wanted = x.shape[0] * k

    def above(limit: float, room: int) -> ThresholdCode:
        threshold = weight.new_full((), limit)
        return threshold_packed(x, weight, bias, threshold, min(room, m), precision, packed)

    room = _room_for(4 * k if width is None else width)
    listed = None
    if guess is not None:
        limit = max(guess, 0.0)
        found = above(limit, room)
        enough = limit == 0.0 or int(found.counts.sum()) >= wanted
        if enough and _largest(found.counts) <= room:
            return _cut(found, wanted)
        listed = found.values
    if listed is None or int((listed > 0).sum()) < wanted:
        some_more = min(k + k // 2 + 8, m)
        listed = encode_packed(x, weight, bias, some_more, precision, packed).values
    limit = _bound(listed, wanted)
    found = above(limit, room)
    if limit > 0 and int(found.counts.sum()) < wanted:
        limit = 0.0
        found = above(limit, room)
    if _largest(found.counts) > room:
        found = above(limit, _room_for(_largest(found.counts)))
    return _cut(found, wanted)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    guess: float | None,
    width: int | None,
    precision: str,
) -> None:
    checks.encode_operands(x, weight, bias, None)
    checks.at_least_float32("weight", weight)
    checks.whole("k", k)
    checks.between("k", k, 1, weight.shape[0], "the rows of weight")
    if guess is not None and math.isnan(guess):
        raise ValueError(f"guess must be a number or None, got {guess}")
    if width is not None:
        checks.whole("width", width)
        checks.between("width", width, 1, 2**31 - 1, "a number of latents")
    checks.one_of("precision", precision, PRECISIONS)


def _room_for(count: int) -> int:
    """32 times a power of two."""
    return 32 << max(0, (count - 1).bit_length() - 5)


def _largest(counts: Tensor) -> int:
    return int(counts.amax()) if counts.numel() else 0


def _bound(listed: Tensor, wanted: int) -> float:
    """A number above which the `wanted` largest are, from some of the scores.

    It is a little lower than it need be: on a GPU a top k of bfloat16 products is not summed in the
    order of `threshold_encode`.
    """
    positive = listed[listed > 0]
    if positive.numel() < max(wanted, 1):
        return 0.0
    return _LOWER * float(torch.kthvalue(positive, positive.numel() - wanted + 1).values)


def _cut(found: ThresholdCode, wanted: int) -> BatchCode:
    """The `wanted` largest of what was found, or all; of equal values the first in memory."""
    values, indices, counts = found
    total = int(counts.sum())
    if total > wanted:
        smallest = torch.kthvalue(values[_filled(values, counts)], total - wanted + 1).values
        kept, tied = values > smallest, values == smallest
        kept |= tied & (tied.flatten().cumsum(0).view_as(tied) <= wanted - kept.sum())
        counts = kept.sum(1)
    width = max(_largest(counts), 1)
    values, indices = values[:, :width], indices[:, :width]
    filled = _filled(values, counts)
    code = SparseCode(torch.where(filled, values, 0.0), torch.where(filled, indices, 0))
    smallest = values.new_zeros(()) if total == 0 else values[filled].amin()
    return BatchCode(code, smallest, counts)


def _filled(values: Tensor, counts: Tensor) -> Tensor:
    """Where a row is not filled up with zeros."""
    return torch.arange(values.shape[1], device=values.device) < counts[:, None]
