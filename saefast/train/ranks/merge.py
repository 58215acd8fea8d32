"""Codes of all latents from the codes that each rank has found among its own."""

import torch
from torch import Tensor

from saefast import reference
from saefast.train.ranks.share import Share
from saefast.types import SparseCode, ThresholdCode


def merged_largest(
    share: Share, code: SparseCode, k: int, counts: list[int], *, absolute: bool = False
) -> SparseCode:
    """Return the k largest scores of each row among all ranks.

    Each rank merges a cut of the rows, and sends it to all. Of equal scores those of lower ranks,
    and of a rank those listed first, are taken: latents must ascend from rank to rank.

    Args:
        share: the share of this rank.
        code: this rank's scores and their latents, [n, min(k, latents of the rank)], by descending
            score, equal ones by ascending latent.
        k: number of scores to keep per row.
        counts: number of latents of each rank.
        absolute: whether scores are ranked by absolute value.
    """
    widths = [min(k, count) for count in counts]
    values, indices = _exchanged(share, code, widths)
    ranks = reference.magnitudes(values) if absolute else values
    order = ranks.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return _collected(share, values.gather(1, order), indices.gather(1, order), len(code.values))


def merged_above(share: Share, found: ThresholdCode, width: int) -> ThresholdCode:
    """Return the scores above their threshold among all ranks, at most `width` of each row.

    `found` are those of this rank with their latents, at most the `width` largest of each row. The
    result is as wide as its longest row.
    """
    counts = found.counts[:, None]
    each = torch.stack(share.ranks.all_gather(counts, [counts.shape] * share.ranks.size))
    total = each.sum(0).squeeze(1)
    longest = each.amax((1, 2)).clamp(max=width).tolist() if len(counts) else [0] * len(each)
    mine = longest[share.ranks.rank]
    listed = SparseCode(found.values[:, :mine], found.indices[:, :mine])
    values, indices = _exchanged(share, listed, longest)
    cut = share.cut(len(counts), share.ranks.rank)
    there = torch.cat(
        [
            torch.arange(length, device="cpu") < each[rank, cut]
            for rank, length in enumerate(longest)
        ],
        dim=1,
    )
    order = values.masked_fill(~there, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    used = max(1, min(width, int(total.amax()) if len(total) else 0))
    order = order[:, :used]
    kept = torch.arange(order.shape[1], device="cpu") < total[cut, None]
    values = torch.where(kept, values.gather(1, order), 0.0)
    indices = torch.where(kept, indices.gather(1, order), 0)
    if order.shape[1] < used:  # no latent of any row is above its threshold
        values, indices = values.new_zeros(len(values), used), indices.new_zeros(len(values), used)
    return ThresholdCode(*_collected(share, values, indices, len(total)), total)


def _exchanged(share: Share, code: SparseCode, widths: list[int]) -> tuple[Tensor, Tensor]:
    """Return values and latents that all ranks list for this rank's cut of the rows, by rank."""
    size, count = share.ranks.size, len(code.values)
    mine = share.lengths(count)[share.ranks.rank]
    packed = _packed(*code)
    parts = [packed[share.cut(count, rank)] for rank in range(size)]
    each = code.values.itemsize + 4
    got = share.ranks.all_to_all(parts, [(mine, width * each) for width in widths])
    codes = [
        _unpacked(part, width, code.values.dtype) for part, width in zip(got, widths, strict=True)
    ]
    return torch.cat([values for values, _ in codes], 1), torch.cat([ids for _, ids in codes], 1)


def _collected(share: Share, values: Tensor, indices: Tensor, count: int) -> SparseCode:
    """Return the code of all `count` rows, of which every rank has a cut."""
    whole = share.collected(_packed(values, indices), count)
    return SparseCode(*_unpacked(whole, values.shape[1], values.dtype))


def _packed(values: Tensor, indices: Tensor) -> Tensor:
    """Return values and indices [n, w] as bytes [n, (size of a value + 4) * w]."""
    n, width = values.shape
    halves = (values.contiguous().view(-1), indices.int().contiguous().view(-1))
    sizes = (width * values.itemsize, width * 4)
    parts = [half.view(torch.uint8).view(n, size) for half, size in zip(halves, sizes, strict=True)]
    return torch.cat(parts, 1)


def _unpacked(packed: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    end = width * dtype.itemsize
    values, indices = packed[:, :end].reshape(-1), packed[:, end:].reshape(-1)
    n = len(packed)
    return values.view(dtype).view(n, width), indices.view(torch.int32).view(n, width).long()
