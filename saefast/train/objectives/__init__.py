"""What each variant of SAE is trained for: its forward pass and the gradients of its loss."""

from collections.abc import Sequence

from saefast.sae import SAE
from saefast.train.objectives.batchtopk import BatchTopK, Matryoshka
from saefast.train.objectives.forward import (
    ALWAYS,
    NEVER,
    WHEN_SPARSE,
    Current,
    Encoded,
    Forward,
    Loss,
    Objective,
)
from saefast.train.objectives.gated import Custom, Gated
from saefast.train.objectives.thresholds import JumpReLU, ReLU
from saefast.train.objectives.topk import TopK

SPARSITY = {"relu": 5.0, "gated": 5.0, "jumprelu": 100.0}
"""Weight of the sparsity penalty of each variant that has one, for rows whose norm is about the
root of their width"""
BANDWIDTH = 0.05
GROUP_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)


def usual_objective(
    sae: SAE,
    *,
    sparsity: float | None = None,
    bandwidth: float = BANDWIDTH,
    group_shares: Sequence[float] = GROUP_SHARES,
) -> Objective:
    """What the SAE's variant is trained for."""
    if sae.variant == "topk":
        return TopK()
    if sae.variant == "batchtopk":
        return BatchTopK(sae)
    if sae.variant == "matryoshka":
        return Matryoshka(sae, group_shares)
    weight = SPARSITY[sae.variant] if sparsity is None else sparsity
    if sae.variant == "relu":
        return ReLU(weight)
    return Gated(weight) if sae.variant == "gated" else JumpReLU(weight, bandwidth)


__all__ = [
    "ALWAYS",
    "BANDWIDTH",
    "GROUP_SHARES",
    "NEVER",
    "WHEN_SPARSE",
    "BatchTopK",
    "Current",
    "Custom",
    "Encoded",
    "Forward",
    "Gated",
    "JumpReLU",
    "Loss",
    "Matryoshka",
    "Objective",
    "ReLU",
    "TopK",
    "usual_objective",
]
