"""Number of dictionaries in which features occur, and its extrapolation to more dictionaries."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.stability.result import Stability

_STEEPEST = 6.0
_EXPONENTS = 121
_FLATTEST = 1e-6  # equivalent to a logarithm; below it a and c would cancel digits
_BITS = 63  # of an int64, one for each dictionary


def membership_counts(stability: Stability) -> Tensor:
    """Count the features of each dictionary that occur in exactly 1, 2, ... s dictionaries.

    Args:
        stability: result of `score_stability`.

    Returns:
        [s, s] int64, a row for each dictionary. Every alive feature occurs in its own dictionary,
        so the first column counts the features that no other dictionary has.
    """
    s = len(stability.support)
    counts = [
        torch.bincount(support[alive] - 1, minlength=s)
        for support, alive in zip(stability.support, stability.alive, strict=True)
    ]
    return torch.stack(counts)


@dataclass(frozen=True, kw_only=True)
class SubsetPoint:
    """Shares of features in one or all dictionaries of a subset, over subsets of one size."""

    dictionaries: int
    """number of dictionaries in a subset"""
    subsets: int
    """number of subsets"""
    alone: float
    """share of the features that occur in only one dictionary of the subset, mean over subsets"""
    alone_deviation: float
    """standard deviation of `alone` over subsets. Subsets overlap, so it is not an error of the
    mean"""
    everywhere: float
    """share of the features that occur in all dictionaries of the subset, mean over subsets"""
    everywhere_deviation: float
    """standard deviation of `everywhere` over subsets"""


def subset_curve(stability: Stability, *, subsets: int = 20, seed: int = 0) -> list[SubsetPoint]:
    """Measure the shares of features in one dictionary only, and in all, by their number.

    Args:
        stability: result of `score_stability`.
        subsets: maximum number of subsets of each size: all, or as many drawn without repetition.
        seed: seed of the drawn subsets.

    Returns:
        A `SubsetPoint` for each number of dictionaries from 2.
    """
    checks.whole("subsets", subsets, 1)
    s = len(stability.score)
    patterns = [_patterns(stability, i) for i in range(s)]
    points = []
    for k in range(2, s + 1):
        shares = np.array([_shares(patterns, chosen) for chosen in _choices(s, k, subsets, seed)])
        mean, deviation = shares.mean(0), shares.std(0)
        points.append(
            SubsetPoint(
                dictionaries=k,
                subsets=len(shares),
                alone=float(mean[0]),
                alone_deviation=float(deviation[0]),
                everywhere=float(mean[1]),
                everywhere_deviation=float(deviation[1]),
            )
        )
    return points


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Power law with an offset, a * k^b + c."""

    a: float
    """factor of the power"""
    b: float
    """exponent"""
    c: float
    """offset, which is the limit for large k if b is negative"""
    residual: float
    """root mean squared distance from the points"""

    def at(self, k: float) -> float:
        """Return the value at k.

        Args:
            k: positive number.

        Returns:
            a * k^b + c.
        """
        return float(self.a * k**self.b + self.c)


def fit_power_law(k: Sequence[float], values: Sequence[float]) -> PowerLaw:
    """Fit a * k^b + c to `values` by least squares, with b from -6 to 6, not 0.

    For each b, a and c solve a linear problem; b is searched on a grid and then between the
    neighbours of the best grid point. Three points are fitted exactly, so their residual says
    nothing about the fit.

    Args:
        k: positive numbers, at least three distinct ones, such as `SubsetPoint.dictionaries`.
        values: a value for each k, such as `SubsetPoint.alone`.

    Returns:
        The coefficients and the residual.
    """
    x, y = np.asarray(k, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"values must have the shape of k, {x.shape}, got {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all()):
        raise ValueError("k must be positive, and k and values finite")
    if len(np.unique(x)) < 3:
        raise ValueError(f"k must have at least 3 different numbers, got {k}; use more seeds")
    grid = np.linspace(-_STEEPEST, _STEEPEST, _EXPONENTS)
    best = int(np.argmin([_solve(x, y, b)[2] for b in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-10:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if _solve(x, y, left)[2] <= _solve(x, y, right)[2]:
            high = right
        else:
            low = left
    b = float((low + high) / 2)
    if abs(b) < _FLATTEST:
        b = math.copysign(_FLATTEST, b)
    slope, level, squares = _solve(x, y, b)
    return PowerLaw(a=slope / b, b=b, c=level - slope / b, residual=math.sqrt(squares / len(x)))


def _solve(x: np.ndarray, y: np.ndarray, b: float) -> tuple[float, float, float]:
    """Fit slope * (x^b - 1) / b + level and return slope, level and the residual sum of squares.

    Unlike a and c, slope and level do not diverge as b goes to 0.

    Returns:
        Slope, level and sum of squares.
    """
    basis = np.log(x) if b == 0 else np.expm1(b * np.log(x)) / b
    centred, off = basis - basis.mean(), y - y.mean()
    slope = float(centred @ off / (centred @ centred))
    left = off - slope * centred
    return slope, float(y.mean() - slope * basis.mean()), float(left @ left)


class _Patterns(NamedTuple):
    """Distinct sets of other dictionaries in which features of one dictionary occur."""

    bits: np.ndarray
    """[patterns, words] int64, see `_words`"""
    counts: np.ndarray
    """[patterns] int64, number of features with each pattern"""


def _patterns(stability: Stability, i: int) -> _Patterns:
    found = _words(stability.hit[i][stability.alive[i]].numpy())
    return _Patterns(*np.unique(found, axis=0, return_counts=True))


def _words(members: np.ndarray) -> np.ndarray:
    """Pack masks of dictionaries [*, s] as bits of integers, [*, words] int64."""
    starts = range(0, members.shape[-1], _BITS)
    parts = [members[..., start : start + _BITS] for start in starts]
    return np.stack([part @ (1 << np.arange(part.shape[-1])) for part in parts], -1)


def _shares(patterns: Sequence[_Patterns], chosen: Sequence[int]) -> tuple[float, float]:
    """Return the shares of features in no other and in every other of the chosen dictionaries."""
    alone = everywhere = features = 0
    for s in chosen:
        others = _words(np.isin(np.arange(len(patterns)), [t for t in chosen if t != s]))
        bits, counts = patterns[s]
        alone += int(counts[((bits & others) == 0).all(1)].sum())
        everywhere += int(counts[((bits & others) == others).all(1)].sum())
        features += int(counts.sum())
    return (alone / features, everywhere / features) if features else (math.nan, math.nan)


def _choices(s: int, k: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """Return distinct subsets of k out of s: all if there are at most `most`, else random ones."""
    if math.comb(s, k) <= most:
        return list(itertools.combinations(range(s), k))
    random = np.random.default_rng([seed, k])
    found: dict[tuple[int, ...], None] = {}
    while len(found) < most:
        found[tuple(sorted(random.choice(s, k, replace=False).tolist()))] = None
    return list(found)
