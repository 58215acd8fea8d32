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

from saefast import checks
from saefast.ops.encode_packed import Packed, encode_packed, threshold_packed
from saefast.ops.keep_of_batch import keep_of_batch
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


SLACK = 0.9
"""What the last threshold is multiplied by to guess the next; decides on the time alone"""


def batch_topk(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    *,
    guess: float | Tensor | None = None,
    width: int | None = None,
    precision: str = "exact",
    packed: Packed | None = None,
) -> BatchCode:
    """The n * k largest positive values of x @ weight.T + bias; of equal ones the first in memory.

    Waits for a GPU once after every encode it makes, and once in the end.

    Args:
        x: [n, d] rows to encode; must be finite, float32 or float64.
        weight: [m, d] one row per latent.
        bias: [m]; -infinity masks a latent.
        k: how many latents to keep per row, on average. If fewer are positive, all of those.
        guess: a number or [], probably below the threshold, but not by far. Decides on the time
            alone.
        width: how many latents the largest row will probably have. Decides on the time alone.
        precision: "exact" or "bf16", as in `topk_encode`.
        packed: the weight as `repacked` left it.
    """
    _check(x, weight, bias, k, guess, width, precision)
    m = weight.shape[0]
    wanted = x.shape[0] * k

    def above(limit: Tensor, room: int) -> ThresholdCode:
        return threshold_packed(x, weight, bias, limit, min(room, m), precision, packed)

    room = _room_for(4 * k if width is None else width)
    listed = None
    if guess is not None:
        given = guess if isinstance(guess, Tensor) else weight.new_full((), guess)
        limit = given.to(weight.dtype).clamp(min=0.0)
        found = above(limit, room)
        total, longest, higher = _seen(found, limit)
        if (total >= wanted or not higher) and longest <= room:
            return _cut(found, wanted)
        listed = found.values
    if listed is None or int((listed > 0).sum()) < wanted:
        some_more = min(k + k // 2 + 8, m)
        listed = encode_packed(x, weight, bias, some_more, precision, packed).values
    limit = _bound(listed, wanted)
    found = above(limit, room)
    total, longest, higher = _seen(found, limit)
    if higher and total < wanted:
        limit = torch.zeros_like(limit)
        found = above(limit, room)
        _, longest, _ = _seen(found, limit)
    if longest > room:
        found = above(limit, _room_for(longest))
    return _cut(found, wanted)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    guess: float | Tensor | None,
    width: int | None,
    precision: str,
) -> None:
    checks.encode_operands(x, weight, bias, None)
    checks.at_least_float32("weight", weight)
    checks.whole("k", k)
    checks.between("k", k, 1, weight.shape[0], "the rows of weight")
    if isinstance(guess, float) and math.isnan(guess):
        raise ValueError(f"guess must be a number or None, got {guess}")
    if width is not None:
        checks.whole("width", width)
        checks.between("width", width, 1, 2**31 - 1, "a number of latents")
    checks.one_of("precision", precision, PRECISIONS)


def _room_for(count: int) -> int:
    """32 times a power of two."""
    return 32 << max(0, (count - 1).bit_length() - 5)


def _seen(found: ThresholdCode, limit: Tensor) -> tuple[int, int, bool]:
    """How many values are above the limit, in all and in the longest row, and whether it is > 0."""
    counts = found.counts
    longest = counts.amax() if counts.numel() else counts.new_zeros(())
    total, longest, higher = torch.stack([counts.sum(), longest, (limit > 0).long()]).tolist()
    return total, longest, bool(higher)


def _bound(listed: Tensor, wanted: int) -> Tensor:
    """A number above which the `wanted` largest are, from some of the scores; [].

    It is a little lower than it need be: on a GPU a top k of bfloat16 products is not summed in the
    order of `threshold_encode`.
    """
    if wanted == 0:
        return listed.new_zeros(())
    _, _, kept, smallest = keep_of_batch(
        listed, torch.zeros_like(listed, dtype=torch.int64), wanted
    )
    return torch.where(kept.sum() == wanted, _LOWER * smallest, 0.0)


def _cut(found: ThresholdCode, wanted: int) -> BatchCode:
    """The `wanted` largest of what was found, or all; of equal values the first in memory."""
    values, indices, counts, smallest = keep_of_batch(found.values, found.indices, wanted)
    width = max(int(counts.amax()), 1) if counts.numel() else 1
    return BatchCode(SparseCode(values[:, :width], indices[:, :width]), smallest, counts)
