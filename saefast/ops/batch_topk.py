"""BatchTopK (Bussmann et al., 2412.06410): the n * k largest positive values of a whole batch.

Rows differ in their number of latents, but share a threshold, which changes little from step to
step: with a guess slightly below it, one pass of `threshold_encode` finds all values that may be
kept. Without a guess, or if it fails, a `topk_encode` provides an initial bound. The result does
not depend on the guess.
"""

import math
from collections.abc import Callable
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
    """values and indices [n, w], where w is the width of the longest row; padded with zeros"""
    threshold: Tensor
    """[] smallest value kept; zero if none is"""
    counts: Tensor
    """[n] int64, number of latents kept in each row"""


SLACK = 0.9
"""Factor by which the last threshold is multiplied to guess the next; it affects time only."""


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
    """Select the n * k largest positive values of x @ weight.T + bias; ties by memory order.

    Waits for a GPU once after every encode, and once at the end.

    Args:
        x: [n, d] rows to encode; finite, float32 or float64.
        weight: [m, d] one row per latent.
        bias: [m]; -infinity masks a latent.
        k: average number of latents to keep per row; if fewer are positive, all of them are kept.
        guess: a number or [], preferably slightly below the threshold. Affects time only.
        width: expected number of latents of the longest row. Affects time only.
        precision: "exact" or "bf16", as in `topk_encode`.
        packed: the weight packed by `repacked`; None: unpacked.

    Returns:
        The code, the threshold and the number of latents in each row.
    """
    _check(x, weight, bias, k, guess, width, precision)
    m = weight.shape[0]
    wanted = x.shape[0] * k

    def above(limit: Tensor, room: int) -> ThresholdCode:
        return threshold_packed(
            x, weight, bias, limit, min(room, m), precision, packed, wanted=wanted
        )

    def largest(number: int) -> Tensor:
        return encode_packed(x, weight, bias, min(number, m), precision, packed).values

    given = None if guess is None else torch.as_tensor(guess).to(weight)
    return largest_of_batch(above, largest, x.shape[0], k, guess=given, width=width)


def largest_of_batch(
    above: Callable[[Tensor, int], ThresholdCode],
    largest: Callable[[int], Tensor],
    rows: int,
    k: int,
    *,
    guess: Tensor | None = None,
    width: int | None = None,
) -> BatchCode:
    """Compute `batch_topk` by two encodes of the batch.

    Args:
        above: encode of the latents above a threshold [], at most a given number of each row.
        largest: values [n, number] of the given number of largest scores of each row, or of all
            latents.
        rows: number of rows.
        k: average number of latents to keep per row.
        guess: [] or None, as in `batch_topk`.
        width: expected number of latents of the longest row.

    Returns:
        The code, the threshold and the number of latents in each row.
    """
    wanted = rows * k
    room = _room_for(4 * k if width is None else width)
    listed = None
    if guess is not None:
        limit = guess.clamp(min=0.0)
        found = above(limit, room)
        total, longest, higher = _seen(found, limit)
        if (total >= wanted or not higher) and longest <= room:
            return _cut(found, wanted)
        listed = found.values
    if listed is None or int((listed > 0).sum()) < wanted:
        listed = largest(k + k // 2 + 8)
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
    """Return the least capacity for `count` latents that is 32 times a power of two."""
    return 32 << max(0, (count - 1).bit_length() - 5)


def _seen(found: ThresholdCode, limit: Tensor) -> tuple[int, int, bool]:
    """Return the number of values above the limit, in total and in the longest row; limit > 0."""
    counts = found.counts
    longest = counts.amax() if counts.numel() else counts.new_zeros(())
    total, longest, higher = torch.stack([counts.sum(), longest, (limit > 0).long()]).tolist()
    return total, longest, bool(higher)


def _bound(listed: Tensor, wanted: int) -> Tensor:
    """Return a lower bound [] of the `wanted` largest scores, from some of the scores.

    The bound has a margin: on a GPU a top k of bfloat16 products is not summed in the order of
    `threshold_encode`.
    """
    if wanted == 0:
        return listed.new_zeros(())
    _, _, kept, smallest = keep_of_batch(
        listed, torch.zeros_like(listed, dtype=torch.int64), wanted
    )
    return torch.where(kept.sum() == wanted, _LOWER * smallest, 0.0)


def _cut(found: ThresholdCode, wanted: int) -> BatchCode:
    """Keep the `wanted` largest values of a code, or all; ties by memory order."""
    values, indices, counts, smallest = keep_of_batch(found.values, found.indices, wanted)
    width = max(int(counts.amax()), 1) if counts.numel() else 1
    return BatchCode(SparseCode(values[:, :width], indices[:, :width]), smallest, counts)
