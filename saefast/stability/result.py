"""Result of scoring the stability of features."""

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
"""Default thresholds of curves: 0.02, 0.04, ..., 1."""


@dataclass(frozen=True, kw_only=True)
class StabilityRule:
    """Rule by which a feature counts as found in another dictionary."""

    threshold: float | str
    """minimum similarity of a match, or "null" for a threshold derived from chance"""
    match: str
    """one of `stability.MATCHES`"""
    side: str
    """one of `dictionary.SIDES`"""
    absolute: bool
    """whether opposite directions count as similar"""
    same_partner: bool
    """whether both sides must have the same partner"""
    confidence: float
    """confidence level of the intervals"""
    width: int
    """width d of the dictionaries, which with their sizes determines the null"""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Stability scores of the features of several dictionaries.

    Most fields hold a tensor for each dictionary with a value for each of its m features; s is the
    number of dictionaries. Dead features are ignored: all their values are 0, and they are no
    feature's partner.
    """

    score: tuple[Tensor, ...]
    """[m] float64, share of the other dictionaries in which the feature has a match"""
    support: tuple[Tensor, ...]
    """[m] int64, number of dictionaries with the feature, including its own; 0 if it is dead"""
    low: tuple[Tensor, ...]
    """[m] float64, lower end of the Jeffreys interval, at `rule.confidence`, of the probability
    that a further dictionary has the feature"""
    high: tuple[Tensor, ...]
    """[m] float64, upper end of that interval"""
    soft: tuple[Tensor, ...]
    """[m] float64, mean similarity to the partners: a score without a threshold"""
    alive: tuple[Tensor, ...]
    """[m] bool, features that are not dead"""
    similarity: tuple[Tensor, ...]
    """[m, s] similarity to the partner in each dictionary; 0 without a partner"""
    partner: tuple[Tensor, ...]
    """[m, s] int64, partner in each dictionary; -1 for none and for the feature's own dictionary"""
    hit: tuple[Tensor, ...]
    """[m, s] bool, dictionaries in which the similarity reaches `thresholds`"""
    thresholds: Tensor
    """[s] float64, minimum similarity of a match in each dictionary"""
    chance: Tensor
    """[s] float64, probability that the rule finds a random direction in each dictionary; for
    "mutual" and "one_to_one", one of as many as the other dictionaries have on average"""
    rule: StabilityRule
    """rule by which matches were counted"""

    __repr__ = brief

    def stable(self, stable: float = 0.8) -> tuple[Tensor, ...]:
        """Return masks of the alive features with a score of at least `stable`.

        Args:
            stable: minimum score.

        Returns:
            [m] bool for each dictionary.
        """
        return tuple(
            is_stable(score, stable) & alive
            for score, alive in zip(self.score, self.alive, strict=True)
        )

    def unstable(self, unstable: float = 0.2) -> tuple[Tensor, ...]:
        """Return masks of the alive features with a score of at most `unstable`.

        Args:
            unstable: maximum score.

        Returns:
            [m] bool for each dictionary.
        """
        return tuple(
            is_unstable(score, unstable) & alive
            for score, alive in zip(self.score, self.alive, strict=True)
        )

    def groups(self, stable: float = 0.8, unstable: float = 0.2) -> list[dict[str, Tensor]]:
        """Return the groups of stable and unstable features, for arguments named `groups`.

        Args:
            stable: minimum score of a stable feature.
            unstable: maximum score of an unstable feature.

        Returns:
            {"stable": [m] bool, "unstable": [m] bool} for each dictionary.
        """
        return groups_by_score(self, stable, unstable)

    @property
    def dead(self) -> tuple[int, ...]:
        """Number of dead features of each dictionary."""
        return tuple(int((~alive).sum()) for alive in self.alive)

    def mean(self) -> float:
        """Return the mean score of all alive features; NaN if there are none."""
        scores = [score[alive] for score, alive in zip(self.score, self.alive, strict=True)]
        return float(torch.cat(scores).mean())

    def to_table(self, seeds: Sequence[int] | None = None) -> "pa.Table":
        """Return a table with a row for each dictionary and feature.

        Args:
            seeds: seeds of the dictionaries, used in names of columns: partner_7 and similarity_7
                are the partner in the dictionary of seed 7 and its similarity, null if there is
                none. None: numbers from 0.

        Returns:
            A pyarrow table.
        """
        import pyarrow as pa

        names = range(len(self.score)) if seeds is None else list(seeds)
        if len(set(names)) != len(self.score):
            raise ValueError(
                f"seeds must have one entry for each of the {len(self.score)} dictionaries, got "
                f"{seeds}"
            )
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
