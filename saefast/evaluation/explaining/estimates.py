"""Means over the latents of several SAEs, and differences at equal firing rate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.intervals import NOWHERE, Floats, Interval, student_quantile

_NORMAL = 1.959963984540054


class Estimate(NamedTuple):
    """A value of one SAE with its standard error over the SAE's latents."""

    value: float
    error: float
    """standard error; infinite for a single latent, whose spread is unknown"""
    n: int
    """number of latents"""


def mean_of(values: Floats) -> Estimate:
    """Return the mean of values [latents]; NaN are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Estimate(float("nan"), float("nan"), 0)
    error = float(known.std(ddof=1)) / len(known) ** 0.5 if len(known) > 1 else float("inf")
    return Estimate(float(known.mean()), error, len(known))


def equal_rate_difference(
    a: Floats, b: Floats, bins_a: NDArray[np.int64], bins_b: NDArray[np.int64]
) -> Estimate:
    """Return mean(a) - mean(b) within bins of firing rate, with Mantel-Haenszel weights.

    Bins without latents of both groups have no weight; the value is NaN if no bin has both. The
    spread of a single latent in a bin is taken from the spread of its group within other bins.

    Args:
        a: [latents of a] values of one group; NaN are left out.
        b: [latents of b] values of another group.
        bins_a: [latents of a] bin of each latent.
        bins_b: [latents of b] bin of each latent.
    """
    total = difference = variance = 0.0
    count = 0
    firsts, seconds = _by_bin(a, bins_a), _by_bin(b, bins_b)
    for number in sorted(firsts.keys() & seconds.keys()):
        first, second = firsts[number], seconds[number]
        weight = first.n * second.n / (first.n + second.n)
        total += weight
        difference += weight * (first.value - second.value)
        variance += weight**2 * (first.error**2 + second.error**2)
        count += first.n + second.n
    if not total:
        return Estimate(float("nan"), float("nan"), 0)
    return Estimate(difference / total, variance**0.5 / total, count)


def between(a: Sequence[Estimate], b: Sequence[Estimate]) -> list[Estimate]:
    """Return the differences a - b by seed, or the difference of the means if no seed is shared."""
    if len(a) != len(b):
        a, b = [_pooled(a)], [_pooled(b)]
    return [
        Estimate(
            first.value - second.value,
            (first.error**2 + second.error**2) ** 0.5,
            first.n + second.n,
        )
        for first, second in zip(a, b, strict=True)
    ]


def combined(
    estimates: Sequence[Estimate], *, least: float = -np.inf, most: float = np.inf
) -> Interval:
    """Return the mean over SAEs with its 95 % interval.

    The interval is the larger one of Student's interval over SAEs and the interval over their
    latents, since few SAEs may agree by chance.

    Args:
        estimates: one for each SAE; NaN are left out.
        least: smallest possible value.
        most: largest possible value.
    """
    pooled = _pooled(estimates)
    if not pooled.n:
        return NOWHERE
    half = _NORMAL * pooled.error
    return Interval(pooled.value, max(pooled.value - half, least), min(pooled.value + half, most))


def _by_bin(values: Floats, bins: NDArray[np.int64]) -> dict[int, Estimate]:
    """Return the mean of each bin; a single latent's error is the pooled spread within bins."""
    means = {int(number): mean_of(values[bins == number]) for number in np.unique(bins)}
    means = {number: its for number, its in means.items() if its.n}
    several = [its for its in means.values() if its.n > 1]
    if several:
        squares = sum(its.error**2 * its.n * (its.n - 1) for its in several)
        spread = (squares / sum(its.n - 1 for its in several)) ** 0.5
        means = {
            number: its if its.n > 1 else its._replace(error=spread)
            for number, its in means.items()
        }
    return means


def _pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over SAEs, with the error whose normal interval is that of `combined`."""
    known = [each for each in estimates if each.n]
    if not known:
        return Estimate(float("nan"), float("nan"), 0)
    values = np.array([each.value for each in known])
    within = sum(each.error**2 for each in known) / len(known) ** 2
    across = 0.0
    if len(known) > 1:
        tails = student_quantile(len(known) - 1) / _NORMAL
        across = float(values.var(ddof=1)) / len(known) * tails**2
    return Estimate(float(values.mean()), max(within, across) ** 0.5, sum(each.n for each in known))
