"""Encodes: scores, and the selection of latents by rank or threshold."""

import torch
from torch import Tensor

from saefast.reference.precision import computed
from saefast.types import SparseCode, ThresholdCode


def scores(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """Compute the scores (x @ weight.T + bias) * scale.

    Args:
        x: [n, d] rows.
        weight: [m, d] encoder rows.
        bias: [m]; -infinity masks a latent, regardless of its scale. None adds nothing.
        scale: [m]; None multiplies by one.

    Returns:
        [n, m] scores, at least float32.
    """
    out = computed(x) @ computed(weight).T
    if bias is not None:
        # Infinity is filled in last: a masked latent stays masked regardless of its scale, and zero
        # times infinity is no gradient of the scale.
        masked = bias == -torch.inf
        out = out + computed(bias).masked_fill(masked, 0.0)
    if scale is not None:
        out = out * computed(scale)
    return out if bias is None else torch.where(masked, -torch.inf, out)


def _scores_at(
    precision: str, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    if precision == "bf16":
        folded = weight if scale is None else weight * scale[:, None]
        shift = bias
        if bias is not None and scale is not None:
            masked = bias == -torch.inf
            shift = torch.where(masked, bias, bias.masked_fill(masked, 0.0) * scale)
        x, weight = x.bfloat16().to(x.dtype), folded.bfloat16().to(weight.dtype)
        bias, scale = shift, None
    return scores(x, weight, bias, scale)


def topk_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    scale: Tensor | None = None,
    precision: str = "exact",
    absolute: bool = False,
) -> SparseCode:
    """Select the k largest scores of each row.

    Args:
        x: [n, d] rows.
        weight: [m, d] encoder rows.
        bias: [m], see `scores`.
        k: number of latents per row.
        scale: [m], see `scores`.
        precision: "exact", or "bf16" to round x and weight * scale to bfloat16, and nothing else.
        absolute: whether scores are ranked by their absolute value, see `magnitudes`.

    Returns:
        Values [n, k] in the dtype of x, with their sign, and int64 indices [n, k], by descending
        rank, those of equal rank by ascending index.
    """
    all_scores = _scores_at(precision, x, weight, bias, scale)
    ranks = magnitudes(all_scores) if absolute else all_scores
    order = torch.sort(ranks, dim=1, descending=True, stable=True).indices[:, :k]
    return SparseCode(all_scores.gather(1, order).to(x.dtype), order)


def magnitudes(scores: Tensor) -> Tensor:
    """Return the absolute values of scores; -infinity marks a masked latent and is kept.

    Args:
        scores: scores of any shape.

    Returns:
        The absolute values, of the same shape.
    """
    return torch.where(scores == -torch.inf, -torch.inf, scores.abs())


def threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: Tensor,
    width: int,
    scale: Tensor | None = None,
    precision: str = "exact",
) -> ThresholdCode:
    """Select the scores above a threshold, at most the `width` largest of each row.

    Args:
        x: [n, d] rows.
        weight: [m, d] encoder rows.
        bias: [m], see `scores`.
        threshold: [m], one for each latent, or [].
        width: maximum number of latents per row.
        scale: [m], see `scores`.
        precision: as for `topk_encode`.

    Returns:
        Values and int64 indices [n, width] in the order of `topk_encode`, padded with zeros, and
        the number of active latents [n] int64, which may exceed `width`.
    """
    all_scores = _scores_at(precision, x, weight, bias, scale)
    active = all_scores > threshold
    counts = active.sum(1)
    ranked = torch.where(active, all_scores, -torch.inf)
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :width]
    there = torch.arange(width, device=x.device) < counts[:, None]
    values = torch.where(there, all_scores.gather(1, order), 0.0).to(x.dtype)
    return ThresholdCode(values, torch.where(there, order, 0), counts)


def keep_of_batch(
    values: Tensor, indices: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the `wanted` largest positive values of a batch; ties are broken by memory order.

    Args:
        values: [n, w], descending within each row.
        indices: [n, w] int64.
        wanted: number of values to keep in the whole batch.

    Returns:
        Values and indices [n, w] with zeros in place of discarded entries, the number of values
        kept in each row [n] int64, and the smallest value kept [], 0 if none is.
    """
    flat = values.flatten()
    order = flat.sort(descending=True, stable=True).indices[:wanted]
    kept = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, order, True).view_as(values)
    kept &= values > 0
    smallest = torch.where(kept, values, torch.inf).flatten()
    smallest = torch.cat([smallest, smallest.new_full((1,), torch.inf)]).amin()
    return (
        torch.where(kept, values, 0.0),
        torch.where(kept, indices, 0),
        kept.sum(1),
        torch.where(smallest == torch.inf, 0.0, smallest),
    )


def keep_largest(scores: Tensor, k: int, *, signed: bool, absolute: bool = False) -> None:
    """Set all but the k largest scores of each row to zero, in place.

    Args:
        scores: [n, m]; of equal scores those with lower indices are kept.
        k: number of scores to keep per row.
        signed: whether negative scores may be kept; scores of -infinity never are.
        absolute: whether scores are ranked by their absolute value, see `magnitudes`.
    """
    ranks = magnitudes(scores) if absolute else scores
    order = torch.sort(ranks, dim=1, descending=True, stable=True).indices[:, :k]
    stays = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    stays &= scores > (-torch.inf if signed else 0.0)
    scores.masked_fill_(~stays, 0.0)
