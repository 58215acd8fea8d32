"""Sums over tokens from which the agreement of contributions follows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 20
"""Number of bins of squared cosines"""


class ContributionSums(NamedTuple):
    """Sums over tokens for one variant, from which all results follow."""

    dots: Tensor
    """[s, s] sums of dot products of the contributions of two SAEs to a token"""
    total: Tensor
    """[s, d] sums of the contributions"""
    tokens: Tensor
    """[s, s] numbers of tokens to which both contribute"""
    cosines: Tensor
    """[s, s] sums of squared cosines"""
    histogram: Tensor
    """[s, s, 20] numbers of tokens by squared cosine"""

    @classmethod
    def zero(cls, saes: int, d: int) -> "ContributionSums":
        """Return sums over no tokens."""
        shapes = ((saes, saes), (saes, d), (saes, saes), (saes, saes), (saes, saes, BINS))
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, contributions: Sequence[Tensor]) -> None:
        """Add a batch, [n, d] for each SAE; on one thread, so that sums have one order."""
        squares = [(each * each).sum(1) for each in contributions]
        for a, one in enumerate(contributions):
            self.total[a] += one.sum(0)
            self.dots[a, a] += squares[a].sum()
            for b in range(a + 1, len(contributions)):
                dots = (one * contributions[b]).sum(1)
                self.dots[a, b] += dots.sum()
                both = (squares[a] > 0) & (squares[b] > 0)
                cosine = dots[both] / squares[a][both].sqrt() / squares[b][both].sqrt()
                cosine = cosine.square().clamp(max=1)
                self.tokens[a, b] += len(cosine)
                self.cosines[a, b] += cosine.sum()
                place = (cosine * BINS).long().clamp(max=BINS - 1)
                self.histogram[a, b] += place.bincount(minlength=BINS)

    def variance(self, a: int, rows: int) -> float:
        """Return the sum of squared distances of a's contributions to their mean."""
        mean = self.total[a].square().sum() / rows
        spread = float(self.dots[a, a] - mean)
        # The spread of constant contributions is rounding error.
        return spread if spread > 1e-12 * float(self.dots[a, a]) else 0.0

    def explained(self, a: int, b: int, rows: int) -> dict[str, float]:
        """Return the four measures of two SAEs whose contributions both vary."""
        variances = self.variance(a, rows), self.variance(b, rows)
        apart = float(self.dots[a, a] + self.dots[b, b] - 2 * self.dots[a, b])
        together = float(self.dots[a, b] - self.total[a] @ self.total[b] / rows)
        return {
            "r2_ab": 1 - apart / variances[0],
            "r2_ba": 1 - apart / variances[1],
            "r2": min(together * together / (variances[0] * variances[1]), 1.0),
            "token_r2": float(self.cosines[a, b] / self.tokens[a, b].clamp(min=1)),
        }
