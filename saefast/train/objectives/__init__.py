"""Training objectives of the SAE variants: forward passes and gradients of the losses."""

from collections.abc import Sequence

from saefast.sae import K_PER_ROW, SAE
from saefast.train.config import TrainConfig
from saefast.train.objectives.batchtopk import BatchTopK, Matryoshka
from saefast.train.objectives.forward import (
    Current,
    Encoded,
    Forward,
    FusedPath,
    Loss,
    Objective,
)
from saefast.train.objectives.gated import Custom, Gated
from saefast.train.objectives.thresholds import JumpReLU, ReLU
from saefast.train.objectives.topk import TopK
from saefast.train.settings import BANDWIDTH, GROUP_SHARES

SPARSITY = {"relu": 5.0, "gated": 5.0, "jumprelu": 100.0}
"""Default weight of the sparsity penalty of each variant that has one, for rows with norms of about
sqrt(width)."""


def usual_objective(
    sae: SAE,
    *,
    sparsity: float | None = None,
    bandwidth: float = BANDWIDTH,
    group_shares: Sequence[float] = GROUP_SHARES,
) -> Objective:
    """Return the default objective of the SAE's variant.

    Args:
        sae: the SAE that the objective serves.
        sparsity: weight of the sparsity penalty of relu, jumprelu and gated; None: `SPARSITY`.
        bandwidth: for jumprelu, width of the smoothed step in the gradient of the thresholds.
        group_shares: for matryoshka, share of the latents in each nested group but the last.
    """
    if sae.variant in K_PER_ROW:
        return TopK(absolute=sae.variant == "abstopk")
    if sae.variant == "batchtopk":
        return BatchTopK(sae)
    if sae.variant == "matryoshka":
        return Matryoshka(sae, group_shares)
    weight = SPARSITY[sae.variant] if sparsity is None else sparsity
    if sae.variant == "relu":
        return ReLU(weight)
    return Gated(weight) if sae.variant == "gated" else JumpReLU(weight, bandwidth)


def objective_of(config: TrainConfig, sae: SAE) -> Objective:
    """Return the objective that a config specifies for an SAE.

    Args:
        config: settings of the training.
        sae: the SAE that the objective serves.
    """
    if config.loss is not None:
        return Custom(config.loss)
    return usual_objective(
        sae,
        sparsity=config.sparsity,
        bandwidth=config.bandwidth,
        group_shares=config.group_shares,
    )


__all__ = [
    "BatchTopK",
    "Current",
    "Custom",
    "Encoded",
    "Forward",
    "FusedPath",
    "Gated",
    "JumpReLU",
    "Loss",
    "Matryoshka",
    "Objective",
    "ReLU",
    "TopK",
    "objective_of",
    "usual_objective",
]
