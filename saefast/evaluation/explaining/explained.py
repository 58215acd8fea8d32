"""Firings, rules and samples of latents for the SAEs of every condition on one text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saefast.activations import StoreActivations
from saefast.evaluation.conditions import Condition
from saefast.evaluation.explaining.contexts import Booleans, TokenText
from saefast.evaluation.explaining.examples import Examples, scorable
from saefast.evaluation.explaining.firings import MOST_ACTIVE, Firings, firings
from saefast.evaluation.explaining.rules import FeatureRules, find_rules
from saefast.evaluation.explaining.sample import FeatureSample, sample_features
from saefast.evaluation.explaining.score_rows import SCRAMBLED
from saefast.evaluation.scores import TRAINED
from saefast.sae import SAE, as_saes, code_of
from saefast.types import brief

_DENSE = 2.0  # times the active latents of the trained SAEs
_CALIBRATING = 256  # rows that decide whether a rival is dense


@dataclass(frozen=True, eq=False)
class Explained:
    """Firings and rules of one SAE's latents on the text."""

    firings: Firings
    rules: FeatureRules
    decoder: Tensor | None
    """[m, d] decoder rows; None for scrambled latents, which have no neighbours"""

    __repr__ = brief

    @property
    def mass(self) -> Tensor:
        """Sums of activations times norms of decoder rows, as shares, [m] float64."""
        its = self.firings
        total = torch.from_numpy(np.bincount(its.latent, its.value.astype(np.float64), its.m))
        if self.decoder is not None:
            total = total * self.decoder.double().norm(dim=1)
        return total / total.sum()

    def examples(self, text: TokenText, seed: int) -> Examples:
        """Return the source of windows of the latents."""
        return Examples(text, self.firings, self.decoder, seed)


def encode_conditions(
    trained: Sequence[SAE],
    conditions: Sequence[Condition],
    store: StoreActivations,
    text: TokenText,
    seed: int,
    progress: bool,
) -> dict[str, list[Explained]]:
    """Encode the text and find rules for the trained SAEs and the SAEs of every condition.

    For dense rivals, such as coordinates of the residual stream, only the largest latents of a row
    count as active, as many as the trained SAEs have on average.

    Args:
        trained: SAEs to evaluate.
        conditions: their rivals.
        store: held-out activations.
        text: tokens of the activations.
        seed: seed of the scrambled latents that rules are compared with.
        progress: show progress bars on stderr.

    Returns:
        By condition, beginning with the trained SAEs, one result for each SAE.
    """
    named = {TRAINED: list(trained)}
    for condition in conditions:
        if condition.name in (*named, SCRAMBLED):
            raise ValueError(
                f"conditions must have different names, none of them {TRAINED!r} or {SCRAMBLED!r}, "
                f"got {condition.name!r}"
            )
        named[condition.name] = as_saes(condition.saes, store.d)
    rows = store.read("activations", 0, min(_CALIBRATING, store.rows)).float()
    typical = float(np.mean([_active(sae, rows) for sae in trained]))
    found = {}
    for name, saes in named.items():
        dense = name != TRAINED and _active(saes[0], rows) > _DENSE * typical
        most = max(round(typical), 1) if dense else MOST_ACTIVE
        fired = firings(saes, store, rows=text.rows, most=most, progress=progress)
        rules = find_rules(text, fired, seed=seed, progress=progress)
        found[name] = [
            Explained(its, its_rules, sae.W_dec.detach().float().cpu())
            for its, its_rules, sae in zip(fired, rules, saes, strict=True)
        ]
    return found


def sample_conditions(
    subjects: Mapping[str, Sequence[Explained]],
    text: TokenText,
    features: int,
    groups: Sequence[Mapping[str, Booleans]],
    seed: int,
) -> dict[str, list[FeatureSample]]:
    """Choose latents of every SAE, and of each group of the trained SAEs.

    Args:
        subjects: SAEs by condition.
        text: text of the encoded rows.
        features: number of latents of each SAE.
        groups: for each trained SAE its groups.
        seed: seed of the choice.

    Returns:
        For each condition the samples of its SAEs.
    """
    return {
        name: [
            sample_features(
                scorable(text, subject.firings),
                subject.firings.fired,
                groups[number] if name == TRAINED else {},
                features,
                seed + number,
            )
            for number, subject in enumerate(each)
        ]
        for name, each in subjects.items()
    }


def scramble(
    subjects: Sequence[Explained], text: TokenText, samples: Sequence[FeatureSample], seed: int
) -> tuple[list[Explained], list[FeatureSample]]:
    """Scramble the firings of sampled latents within their contexts, and find rules for them.

    Args:
        subjects: trained SAEs.
        text: text of the encoded rows.
        samples: sampled latents of each SAE.
        seed: seed of the random rows.

    Returns:
        The scrambled SAEs, and a sample of their latents for each.
    """
    moved = [
        subject.firings.chosen(sample.overall).scrambled(text.context_starts, seed + 1)
        for subject, sample in zip(subjects, samples, strict=True)
    ]
    rules = find_rules(text, moved, seed=seed, progress=False)
    found = [Explained(its, its_rules, None) for its, its_rules in zip(moved, rules, strict=True)]
    return found, [FeatureSample(np.flatnonzero(scorable(text, its)), {}) for its in moved]


@torch.no_grad()
def _active(sae: SAE, rows: Tensor) -> float:
    """Return the mean number of active latents of a row."""
    return float((code_of(sae, rows).values != 0).sum()) / len(rows)
