"""Parts of a training step for a whole SAE or for a share of one."""

from typing import NamedTuple

from saefast.sae import SAE
from saefast.train.learner import Learner
from saefast.train.objectives import FusedPath, Gated, Objective
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.ranks.encoder import SharedEncoder
from saefast.train.ranks.group import Ranks
from saefast.train.ranks.learner import SharedLearner
from saefast.train.ranks.share import Share, check_split, shared
from saefast.train.settings import Rules


class Parts(NamedTuple):
    """Parts of a step: SAE, encoder, learner and share."""

    sae: SAE
    """the SAE itself, or the part of it that is on this rank"""
    encoder: PackedEncoder
    learner: Learner
    share: Share | None
    """None: the whole SAE"""


def assemble(
    sae: SAE,
    objective: Objective,
    rules: Rules,
    lr: float,
    precision: str,
    ranks: Ranks,
    share: Share | None,
) -> Parts:
    """Return the parts of a step on this rank; raise a ValueError if it cannot be shared.

    `share`: the share of the SAE that `sae` is; None: `sae` is whole.
    """
    rounded = precision == "bf16_weights"
    encoded = "bf16" if rounded else precision
    if ranks.size == 1:
        encoder = PackedEncoder(sae, encoded, rounded_decoder=rounded)
        return Parts(sae, encoder, Learner(sae, rules, lr, encoder, precision), None)
    check_split(sae, ranks)
    if objective.fused is FusedPath.NEVER:
        other = "gated" if isinstance(objective, Gated) else "a loss of your own"
        raise ValueError(
            "several ranks train topk, abstopk, batchtopk, matryoshka, relu and jumprelu, got "
            f"{other}; train it by one process"
        )
    if rules.tether is not None:
        raise ValueError("several ranks do not train with a tether; train with it by one process")
    part = sae
    if share is None:
        share = Share(ranks, sae.m, sae.d_out)
        part = shared(sae, share)
    shared_encoder = SharedEncoder(part, share, encoded, rounded_decoder=rounded)
    learner = SharedLearner(part, rules, lr, shared_encoder, precision)
    return Parts(part, shared_encoder, learner, share)
