"""Define the result of scoring how often features return in other dictionaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast.stability.groups import groups_by_score, is_stable, is_unstable
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa

CURVE = tuple(i / 50 for i in range(1, 51))
"""The thresholds of curves, unless others are asked for"""


@dataclass(frozen=True, kw_only=True)
class StabilityRule:
    """Rule by which a feature counts as found in another dictionary."""

    threshold: float | str
    """the least similarity, or "null" where chance decided it"""
    match: str
    """one of `stability.MATCHES`"""
    side: str
    """one of `dictionary.SIDES`"""
    absolute: bool
    """whether opposite directions are alike"""
    same_partner: bool
    """whether both sides had to find the same feature"""
    confidence: float
    """of the intervals"""
    width: int
    """of the dictionaries, d: together with their sizes it says what chance finds"""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Scores of how often the features of dictionaries return in the others.

    A tensor for each dictionary, a value for each of its m features. Dead features are left out:
    all their values are 0, and no feature has them as its partner.
    """

    score: tuple[Tensor, ...]
    """[m] float64: the share of the other dictionaries in which the feature has a match"""
    support: tuple[Tensor, ...]
    """[m] int64: in how many dictionaries it is, its own included; 0 for dead features"""
    low: tuple[Tensor, ...]
    """[m] float64: the probability that one more dictionary has it is at least this"""
    high: tuple[Tensor, ...]
    """[m] float64: and at most this, with `rule.confidence`: Jeffreys' interval"""
    soft: tuple[Tensor, ...]
    """[m] float64: the mean of its similarities in the others: a score without a threshold"""
    alive: tuple[Tensor, ...]
    """[m] bool"""
    similarity: tuple[Tensor, ...]
    """[m, s] to its partner in each dictionary, which `thresholds` are for; 0 where it has none"""
    partner: tuple[Tensor, ...]
    """[m, s] int64 which feature of each dictionary that is, -1 for none and for its own"""
    hit: tuple[Tensor, ...]
    """[m, s] bool: in which other dictionaries it is: where similarity reaches `thresholds`"""
    thresholds: Tensor
    """[s] float64: how similar a match must be to a feature of each dictionary"""
    chance: Tensor
    """[s] float64: the probability that a random direction is that similar to a feature of each"""
    rule: StabilityRule
    """what counted as a match"""

    __repr__ = brief

    def stable(self, stable: float = 0.8) -> tuple[Tensor, ...]:
        """[m] bool for each dictionary: the features alive with a score of at least `stable`."""
        return tuple(
            is_stable(score, stable) & alive
            for score, alive in zip(self.score, self.alive, strict=True)
        )

    def unstable(self, unstable: float = 0.2) -> tuple[Tensor, ...]:
        """[m] bool for each dictionary: the features alive with a score of at most `unstable`."""
        return tuple(
            is_unstable(score, unstable) & alive
            for score, alive in zip(self.score, self.alive, strict=True)
        )

    def groups(self, stable: float = 0.8, unstable: float = 0.2) -> list[dict[str, Tensor]]:
        """Return {"stable": mask, "unstable": mask} for each dictionary: any `groups=` takes it."""
        return groups_by_score(self, stable, unstable)

    @property
    def dead(self) -> tuple[int, ...]:
        """How many features of each dictionary are dead."""
        return tuple(int((~alive).sum()) for alive in self.alive)

    def mean(self) -> float:
        """The mean score of all features alive; NaN if there are none."""
        scores = [score[alive] for score, alive in zip(self.score, self.alive, strict=True)]
        return float(torch.cat(scores).mean())

    def to_table(self, seeds: Sequence[int] | None = None) -> "pa.Table":
        """A row for each dictionary and feature, as a pyarrow.Table that any dataframe reads.

        Args:
            seeds: what the dictionaries are called, in columns too: partner_7 is who the partner in
                that of seed 7 is, similarity_7 how similar; empty where there is none. None
                numbers them from 0.
        """
        import pyarrow as pa

        names = range(len(self.score)) if seeds is None else list(seeds)
        if len(set(names)) != len(self.score):
            raise ValueError(f"seeds must name {len(self.score)} dictionaries, got {seeds}")
        sizes = [len(score) for score in self.score]
        columns = {
            "seed": torch.tensor(names).repeat_interleave(torch.tensor(sizes)),
            "feature": torch.cat([torch.arange(size) for size in sizes]),
            "alive": torch.cat(self.alive),
            "stability": torch.cat(self.score),
            "low": torch.cat(self.low),
            "high": torch.cat(self.high),
            "support": torch.cat(self.support),
            "soft": torch.cat(self.soft),
        }
        table = {name: pa.array(values.numpy()) for name, values in columns.items()}
        partner, similarity = torch.cat(self.partner), torch.cat(self.similarity)
        for t, name in enumerate(names):
            unmatched = (partner[:, t] < 0).numpy()
            for column, values in (("partner", partner), ("similarity", similarity)):
                table[f"{column}_{name}"] = pa.array(values[:, t].numpy(), mask=unmatched)
        return pa.table(table)
