"""Null distributions of the similarities found by matching: nearest features and one-to-one pairs.

Random directions are drawn uniformly from the sphere.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from saefast import checks
from saefast.nulls.beta import Floats, beta_cdf

_PARTS, _ROUNDS = 64, 9  # the search for a cosine ends at 2^-54 of the initial interval
_NODES = 64

_BINS = 256  # halving their width changes means by a relative amount of less than 1e-4
_MOST_ABOVE, _LEAST_ABOVE = 60.0, 1e-7  # expected cosines of a row above the first and last edge
_FULLEST = 0.998  # largest ratio of the sides; above it rounds diverge, yet means change by 2e-4
_CLOSE = 1e-6
_MOST_ROUNDS = 5000


def cosine_tail(t: ArrayLike, d: int, absolute: bool = False) -> Floats:
    """Compute P(cos >= t) for a fixed and a random direction in d dimensions.

    With `absolute` it is the probability that the absolute value of the cosine reaches t.

    Returns:
        Probability of each element of `t`.
    """
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
    """Return the nodes and weights of Gauss-Legendre quadrature on [-1, 1]."""
    return np.polynomial.legendre.leggauss(_NODES)


@dataclass(frozen=True)
class BestOfRandom:
    """Distribution of the largest cosine between a direction and n random directions.

    This is the similarity that a feature reaches by chance among n unrelated features. Features of
    anisotropic dictionaries reach more, since all of them lean to a common direction: their nulls
    have to be drawn. With n = 0 no threshold is reached, and the best similarity is 0, as in
    `Matches`.
    """

    n: int
    """number of random directions"""
    d: int
    """width of the directions"""
    absolute: bool = False
    """whether opposite directions count as similar"""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, value, least in (("n", self.n, 0), ("d", self.d, 1)):
            checks.whole(name, value, least)

    def reaches(self, t: ArrayLike) -> Floats:
        """Compute P(best >= t), the share of features that have a match by chance."""
        if self.n == 0:
            return np.zeros(np.shape(t))
        with np.errstate(divide="ignore"):  # log(1 - 1) is -infinity, which gives a probability 1
            none = self.n * np.log1p(-cosine_tail(t, self.d, self.absolute))
        result: Floats = -np.expm1(none)
        return result

    def quantile(self, share: float) -> float:
        """Compute the similarity that the best stays below in the given share of all draws."""
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
        """Compute the expected best similarity, which is the null of means of largest cosines."""
        if self.n == 0:
            return 0.0
        # The angle has a smooth density where the cosine's has infinite slopes (d = 2, 3).
        # Between the quantiles at 1e-16 and 1 - 1e-16, Gaussian quadrature is exact to rounding.
        least, most = self.quantile(1e-16), self.quantile(1 - 1e-16)
        nodes, weights = _gauss()
        small, large = np.arccos(most), np.arccos(least)
        angle = (large + small) / 2 + (large - small) / 2 * nodes
        area = (large - small) / 2 * (weights * self.reaches(np.cos(angle)) * np.sin(angle)).sum()
        return float(least + area)


class PairsOfRandom:
    """Distribution of the similarities in the optimal one-to-one matching of random directions.

    It is computed by the cavity method. The worth of a feature is the similarity of its best
    partner minus the worth of that partner in the absence of the feature; features of the larger
    side may stay without a partner, with worth 0. If all cosines were independent, the distribution
    of worths on each side would follow from that on the other, and a pair would be matched if its
    cosine exceeds the sum of two such worths. Cosines of directions are slightly dependent: for at
    least 16 dimensions and 100 features, means are within 0.002 of those of draws; in 8 dimensions
    they are 0.003 too high.

    Args:
        n: number of directions on one side.
        n2: number of directions on the other; the smaller side is matched completely.
        d: width of the directions.
        absolute: whether opposite directions count as similar.
    """

    def __init__(self, n: int, n2: int, d: int, absolute: bool = False) -> None:
        few, many = sorted((n, n2))
        best = BestOfRandom(many, d, absolute)
        self._edges, self._share = np.zeros(2), np.zeros(1)
        if few == 0:
            return
        low, high = (best.quantile(np.exp(-rate)) for rate in (_MOST_ABOVE, _LEAST_ABOVE))
        self._edges = np.linspace(low, high, _BINS + 1)
        expected = -many * np.diff(cosine_tail(self._edges, d, absolute))
        matched = expected * _matched_share(expected, min(few / many, _FULLEST))
        self._share = matched / matched.sum()

    def mean(self) -> float:
        """Compute the expected similarity of a pair, which is the null of PW-MCC."""
        return float(self._share @ ((self._edges[1:] + self._edges[:-1]) / 2))

    def quantile(self, share: float) -> float:
        """Compute the quantile of the similarities at `share`; 0 without pairs."""
        checks.at_least("share", share, 0, below=1)
        return float(np.interp(1 - share, self._above(), self._edges[::-1]))

    def reaches(self, t: ArrayLike) -> Floats:
        """Compute the share of pairs whose similarity is at least t; 0 without pairs."""
        result: Floats = np.interp(np.asarray(t, np.float64), self._edges, self._above()[::-1])
        return result

    def _above(self) -> Floats:
        """Return the share of pairs above each edge, ascending from the last edge."""
        above: Floats = np.append(0.0, np.cumsum(self._share[::-1]))
        return above


def _matched_share(expected: Floats, ratio: float) -> Floats:
    """Compute for each bin of similarity the share of its pairs that the optimal matching contains.

    `expected` is the expected number of a row's cosines in each bin, `ratio` the number of rows
    divided by the number of columns, at most 1. The unit of cosines and worths is the width of a
    bin: cosines are 0 to n - 1, the worth y of a column 0 to n, the worth x of a row -n to n - 1.

    Returns:
        Share for each bin.
    """
    n = len(expected)
    bins, rows = np.arange(n), np.arange(-n, n)
    columns = np.arange(n + 1)
    # P(worth of a column <= y). The copy below has half of the mass at 0, since cosines are spread
    # over their bins.
    column_at_most = np.ones(n + 1)
    for _ in range(_MOST_ROUNDS):
        column_below = column_at_most.copy()
        column_below[0] /= 2
        # The worth of a row is at most x if each cosine s is with a column worth more than s - x.
        padded = np.concatenate([np.zeros(2 * n), column_below, np.ones(2 * n)])
        row_at_most = np.exp(-np.correlate(padded, expected, "valid")[2 * n - rows])
        padded = np.concatenate([np.zeros(2 * n), row_at_most, np.ones(2 * n)])
        new = np.exp(-ratio * np.correlate(padded, expected, "valid")[3 * n - columns])
        change = np.abs(new - column_at_most).max()
        # Half a step: full steps oscillate, since a gain of one side is a loss of the other.
        column_at_most = (column_at_most + new) / 2
        if change < _CLOSE:
            break
    padded = np.concatenate([np.zeros(n), row_at_most, np.ones(n)])
    between = (padded[1:] + padded[:-1]) / 2
    share: Floats = column_at_most[0] * padded[bins + 2 * n]
    share += np.convolve(np.diff(column_at_most), between)[bins + 2 * n - 1]
    return share
