"""What matching finds where there is nothing to find: among directions drawn from the sphere."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from saefast import checks
from saefast.nulls.beta import Floats, beta_cdf

_PARTS, _ROUNDS = 64, 9  # of what is left of [-1, 1]: 2^-54 of it in the end
_NODES = 64


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
            checks.whole(name, value)
            checks.at_least(name, value, least)

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
