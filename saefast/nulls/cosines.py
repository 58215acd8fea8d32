"""Similarities that matching finds by chance: the nearest of random directions, one-to-one pairs.

Directions are drawn uniformly from the sphere.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from saefast import checks
from saefast.nulls.beta import Floats, beta_cdf

_PARTS, _ROUNDS = 64, 9  # of what is left of [-1, 1]: 2^-54 of it in the end
_NODES = 64

_BINS = 256  # halving them once more changes means by less than 1e-4 of themselves
_MOST_ABOVE, _LEAST_ABOVE = 60.0, 1e-7  # how many of a row's cosines lie above the ends of the bins
_FULLEST = 0.998  # of the larger side: beyond it rounds grow without end, and means by 2e-4
_CLOSE = 1e-6
_MOST_ROUNDS = 5000


def cosine_tail(t: ArrayLike, d: int, absolute: bool = False) -> Floats:
    """P(cos >= t) for a fixed and a random direction in d dimensions; of |cos| with `absolute`."""
    t = np.asarray(t, np.float64)
    if d == 1:  # the cosine is 1 or -1
        tail: Floats = np.where(t <= 1, np.where(t <= -1, 1.0, 0.5), 0.0)
        beyond = np.where(t <= 1, 0.5, 0.0)
    else:
        inside = np.clip(t, -1, 1)
        beyond = 0.5 * beta_cdf((1 - inside) * (1 + inside), (d - 1) / 2, 0.5)
        tail = np.where(inside >= 0, beyond, 1 - beyond)
    return np.where(t <= 0, 1.0, 2 * beyond) if absolute else tail


@lru_cache
def _gauss() -> tuple[Floats, Floats]:
    """Where and with which weights to sum a smooth function from -1 to 1."""
    return np.polynomial.legendre.leggauss(_NODES)


@dataclass(frozen=True)
class BestOfRandom:
    """The cosine of a direction with the most similar of n random ones, drawn from the sphere.

    Whatever a dictionary has been trained on, this is what a feature finds among n others that have
    nothing to do with it. Anisotropic dictionaries find more, since all their features lean the
    same way: their nulls have to be drawn. Among no directions (n = 0) nothing is reached, and the
    best similarity is 0, as it is in `Matches`.
    """

    n: int
    d: int
    absolute: bool = False
    """whether opposite directions are alike"""

    def __post_init__(self) -> None:
        """Sizes are sizes."""
        for name, value, least in (("n", self.n, 0), ("d", self.d, 1)):
            checks.whole(name, value, least)

    def reaches(self, t: ArrayLike) -> Floats:
        """P(best >= t): the share of features that find a match by chance."""
        if self.n == 0:
            return np.zeros(np.shape(t))
        with np.errstate(divide="ignore"):  # log(1 - 1) is -infinity, and then all of them reach t
            none = self.n * np.log1p(-cosine_tail(t, self.d, self.absolute))
        result: Floats = -np.expm1(none)
        return result

    def quantile(self, share: float) -> float:
        """What the best stays below in `share` of all draws."""
        checks.at_least("share", share, 0, below=1)
        if self.n == 0:
            return 0.0
        low, high = (0.0 if self.absolute else -1.0), 1.0
        for _ in range(_ROUNDS):
            points = np.linspace(low, high, _PARTS + 1)
            below = int((self.reaches(points) > 1 - share).sum())
            low, high = points[max(below - 1, 0)], points[min(below, _PARTS)]
        return float(high)

    def mean(self) -> float:
        """Of the best; beside every mean of largest cosines."""
        if self.n == 0:
            return 0.0
        # The angle's distribution is smooth where the cosine's has infinite slopes (d = 2, 3).
        # Between the angles that enclose all but 1e-16, Gauss's rule is exact to rounding.
        least, most = self.quantile(1e-16), self.quantile(1 - 1e-16)
        nodes, weights = _gauss()
        small, large = np.arccos(most), np.arccos(least)
        angle = (large + small) / 2 + (large - small) / 2 * nodes
        area = (large - small) / 2 * (weights * self.reaches(np.cos(angle)) * np.sin(angle)).sum()
        return float(least + area)


class PairsOfRandom:
    """The similarities in the best one-to-one matching of n with n2 random directions.

    By the cavity method: what a feature is worth is the similarity of its best partner less what
    that partner is worth without it; a feature of the larger side may stay alone, for 0. Were all
    cosines independent, the worths on either side would follow from those on the other, and a pair
    would be matched if its cosine is above the sum of two such worths. Cosines of directions
    hang together a little: from 16 dimensions and 100 features on, means are within 0.002 of those
    drawn; in 8 dimensions they are 0.003 too high.

    Args:
        n: directions on one side.
        n2: on the other; the smaller side is matched in full.
        d: the width.
        absolute: whether opposite directions are alike.
    """

    def __init__(self, n: int, n2: int, d: int, absolute: bool = False) -> None:
        few, many = sorted((n, n2))
        best = BestOfRandom(many, d, absolute)
        self._similarity, self._share = np.zeros(1), np.ones(1)
        if few == 0:
            return
        low, high = (best.quantile(np.exp(-rate)) for rate in (_MOST_ABOVE, _LEAST_ABOVE))
        edges = np.linspace(low, high, _BINS + 1)
        expected = -many * np.diff(cosine_tail(edges, d, absolute))
        matched = expected * _matched_share(expected, min(few / many, _FULLEST))
        self._similarity = (edges[1:] + edges[:-1]) / 2
        self._share = matched / matched.sum()

    def mean(self) -> float:
        """Of the pairs' similarities: the null of PW-MCC."""
        return float(self._share @ self._similarity)

    def quantile(self, share: float) -> float:
        """What the similarity stays below in `share` of the pairs, to the width of a bin."""
        checks.at_least("share", share, 0, below=1)
        below = np.cumsum(self._share)
        return float(self._similarity[np.searchsorted(below, share)])

    def reaches(self, t: ArrayLike) -> Floats:
        """The share of pairs whose similarity is at least t."""
        above = np.append(np.cumsum(self._share[::-1])[::-1], 0.0)
        result: Floats = above[np.searchsorted(self._similarity, np.asarray(t, np.float64))]
        return result


def _matched_share(expected: Floats, ratio: float) -> Floats:
    """For each bin of similarity the share of its pairs that the best matching takes.

    `expected` is how many of a row's cosines fall into each bin, `ratio` rows for one column. Rows
    are the few. Everything is counted in bins: cosines are 0 to n - 1, a column's worth y is at
    least 0, a row's worth x lies on -n to n - 1.
    """
    n = len(expected)
    bins, rows = np.arange(n), np.arange(-n, n)
    columns = np.arange(n + 1)
    # P(a column's worth <= y), and below, with half of the lump at 0: cosines fill their bins.
    column_at_most = np.ones(n + 1)
    for _ in range(_MOST_ROUNDS):
        column_below = column_at_most.copy()
        column_below[0] /= 2
        # A row is worth at most x if every cosine s leaves a column worth more than s - x.
        padded = np.concatenate([np.zeros(2 * n), column_below, np.ones(2 * n)])
        row_at_most = np.exp(-np.correlate(padded, expected, "valid")[2 * n - rows])
        padded = np.concatenate([np.zeros(2 * n), row_at_most, np.ones(2 * n)])
        new = np.exp(-ratio * np.correlate(padded, expected, "valid")[3 * n - columns])
        change = np.abs(new - column_at_most).max()
        # Half a step: what one side gains the other loses, and whole steps swing for ever.
        column_at_most = (column_at_most + new) / 2
        if change < _CLOSE:
            break
    padded = np.concatenate([np.zeros(n), row_at_most, np.ones(n)])
    between = (padded[1:] + padded[:-1]) / 2
    share: Floats = column_at_most[0] * padded[bins + 2 * n]
    share += np.convolve(np.diff(column_at_most), between)[bins + 2 * n - 1]
    return share
