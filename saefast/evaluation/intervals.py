"""Intervals of means over seeds and tasks, of AUROC and of proportions.

All intervals hold 95 % of the probability. Each bootstrap uses its own generator, so that equal
arguments give equal bits; compared conditions draw the same tasks.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saefast.evaluation.resamples import mean_of_known, resampled_means, resamples_of
from saefast.nulls.beta import beta_quantile

Floats = NDArray[np.float64]

_TAIL = 0.025
_NORMAL = 1.959963984540054
DRAWS = 2000
_NO_DRAWS: Floats = np.zeros(0)

Limits = tuple[float, float]
UNLIMITED: Limits = (float("-inf"), float("inf"))
SHARE: Limits = (0.0, 1.0)
"""Limits of shares, and of scores such as AUROC"""


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


NOWHERE = Interval(float("nan"), float("nan"), float("nan"))


def two_way_interval(
    values: ArrayLike, *, seed: int = 0, draws: int = DRAWS, limits: Limits = UNLIMITED
) -> Interval:
    """Bootstrap the mean of values over seeds and tasks, which are resampled independently.

    Args:
        values: [seeds, tasks]; NaN where a task has no value.
        seed: seed of the draws.
        draws: number of resamples.
        limits: smallest and largest possible value, beyond which the interval does not extend.

    Returns:
        Mean over seeds and tasks with its interval; both ends are NaN for a single value.
    """
    table = _table("values", values)
    generator = np.random.default_rng(seed)
    tasks = resamples_of(generator, table.shape[1], draws)
    seeds = resamples_of(generator, table.shape[0], draws)
    alone = (~np.isnan(table)).sum() == 1
    drawn = _NO_DRAWS if alone else resampled_means(table, seeds, tasks)
    return interval_of_draws(mean_of_known(table), np.clip(drawn, *limits))


def paired_interval(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, limits: Limits = UNLIMITED
) -> Interval:
    """Bootstrap the difference of two means, mean(a) - mean(b).

    Every resample holds the same tasks for both, and the same seeds where both have as many.

    Args:
        a: [seeds, tasks].
        b: [seeds, tasks]; the same tasks, any number of seeds.
        seed: seed of the draws.
        limits: smallest and largest possible value; the interval does not extend beyond their
            largest difference.

    Returns:
        Difference of the means with its interval; both ends are NaN for a single pair of values.
    """
    first, second = _table("a", a), _table("b", b)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"a and b must have the same number of tasks, got {first.shape[1]} and "
            f"{second.shape[1]}"
        )
    generator = np.random.default_rng(seed)
    tasks = resamples_of(generator, first.shape[1], DRAWS)
    seeds = resamples_of(generator, first.shape[0], DRAWS)
    paired = len(first) == len(second)
    others = seeds if paired else resamples_of(generator, second.shape[0], DRAWS)
    drawn = _NO_DRAWS
    if max(first.size, second.size) > 1:
        drawn = resampled_means(first, seeds, tasks) - resampled_means(second, others, tasks)
    largest = limits[1] - limits[0]
    drawn = np.clip(drawn, -largest, largest)
    return interval_of_draws(mean_of_known(first) - mean_of_known(second), drawn)


def mean_interval(values: ArrayLike) -> Interval:
    """Bootstrap the mean of values [n] over items; NaN are left out."""
    items = np.asarray(values, dtype=np.float64).ravel()
    items = items[~np.isnan(items)]
    if not len(items):
        return NOWHERE
    return two_way_interval(items[None])


def student_interval(values: ArrayLike) -> Interval:
    """Return the mean of independent values [n] with Student's interval; NaN are left out.

    A single value has no interval: both ends are NaN.
    """
    items = np.asarray(values, dtype=np.float64).ravel()
    items = items[~np.isnan(items)]
    if len(items) < 2:
        return NOWHERE._replace(value=float(items[0])) if len(items) else NOWHERE
    value, freedom = float(items.mean()), len(items) - 1
    half = float(student_quantile(freedom) * items.std(ddof=1) / np.sqrt(len(items)))
    return Interval(value, value - half, value + half)


def student_quantile(freedom: int) -> float:
    """Return the number that Student's t exceeds with a probability of 2.5 %."""
    # The square of Student's t is n (1 - x) / x, with n degrees of freedom and x ~ Beta(n/2, 1/2).
    x = float(np.asarray(beta_quantile([2 * _TAIL], freedom / 2, 0.5))[0])
    return float(np.sqrt(freedom * (1 - x) / x))


def interval_of_draws(value: float, drawn: Floats) -> Interval:
    """Return the interval that holds 95 % of bootstrap draws [draws]; NaN are left out."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return NOWHERE if np.isnan(value) else NOWHERE._replace(value=value)
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return Interval(value, float(low), float(high))


def interval_of_equal_items(value: float, n: int, lowest: float, highest: float) -> Interval:
    """Return the interval of a mean of n equal items, whose bootstrap has no width.

    Each end assumes that a share of all items, which n independent draws miss with a probability
    of 2.5 %, lies at that end of the range.

    Args:
        value: value of each item.
        n: number of items.
        lowest: smallest possible value of an item; NaN: unbounded, the interval has no lower end.
        highest: largest possible value of an item, or NaN.
    """
    missed = 1 - _TAIL ** (1 / n)
    return Interval(value, value + missed * (lowest - value), value + missed * (highest - value))


def noise_of_draws(measure: str, drawn: Floats, interval: Interval) -> dict[str, float]:
    """Estimate the noise of a measure, its standard deviation over evaluations of other items.

    Args:
        measure: name of the measure.
        drawn: [draws] values of resampled items of the same SAEs.
        interval: interval of the value over these items; where the draws have no width, because all
            items are equal, its distant end replaces their spread.

    Returns:
        {measure: noise}; empty if neither has a width.
    """
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) and drawn.min() < drawn.max():
        return {measure: float(drawn.std())}
    half = max(interval.high - interval.value, interval.value - interval.low)
    return {} if np.isnan(half) else {measure: half / _NORMAL}


def interval_of_difference(a: Interval, b: Interval, drawn: Floats) -> Interval:
    """Return the interval of a - b.

    Args:
        a: first value with its interval.
        b: second value with its interval.
        drawn: [draws] bootstrap draws of the difference. Where they have no width, because all
            items of both are equal, the ends follow from the ends of the two intervals.
    """
    interval = interval_of_draws(a.value - b.value, drawn)
    if interval.low == interval.high:
        return Interval(interval.value, a.low - b.high, a.high - b.low)
    return interval


def proportion_interval(hits: int, n: int) -> Interval:
    """Return the proportion hits / n with Jeffreys' interval."""
    if n < 1:
        return NOWHERE
    ends = [_TAIL, 1 - _TAIL]
    low, high = np.asarray(beta_quantile(ends, hits + 0.5, n - hits + 0.5)).tolist()
    return Interval(hits / n, 0.0 if hits == 0 else low, 1.0 if hits == n else high)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the probability that a positive item scores above a negative one.

    Args:
        labels: [n] bool; both classes must occur, else the result is NaN.
        scores: [n]; equal scores count half.
    """
    above, _ = _placements(labels, scores)
    return float(above.mean()) if len(above) else float("nan")


def auroc_interval(labels: ArrayLike, scores: ArrayLike) -> Interval:
    """Return AUROC with DeLong's interval on the logit scale.

    Where the classes are separated without error, DeLong's variance is zero. The inner end of the
    interval is then `0.025 ** (1 / n)` at an AUROC of 1, with n the size of the smaller class: the
    value that n pairs of independent items miss with a probability of 2.5 %. At 0 it is one minus
    this value.

    Args:
        labels: [n] bool; both classes must occur, else the result is NaN.
        scores: [n] scores; equal scores count half.
    """
    above, below = _placements(labels, scores)
    if not len(above):
        return NOWHERE
    value = float(above.mean())
    fewest = min(len(above), len(below))
    edge = _TAIL ** (1 / fewest)
    if value in (0.0, 1.0):
        return Interval(value, edge, 1.0) if value == 1 else Interval(value, 0.0, 1 - edge)
    if fewest < 2:
        return Interval(value, 0.0, 1.0)
    variance = above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)
    centre = np.log(value / (1 - value))
    half = _NORMAL * np.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + np.exp(-(centre + sign * half))) for sign in (-1, 1))
    return Interval(value, float(low), float(high))


def smallest_difference(noise: float) -> float:
    """Return the smallest significant difference between two runs of an evaluation.

    Args:
        noise: standard deviation of a run over seeds of the evaluation.
    """
    return _NORMAL * float(np.sqrt(2)) * noise


def gap_closed(value: float, floor: float, ceiling: float, noise: float = 0.0) -> float:
    """Return the share of the gap from floor to ceiling; NaN unless the gap exceeds 4 * noise."""
    gap = ceiling - floor
    if not gap > 4 * noise:
        return float("nan")
    return (value - floor) / gap


def _table(name: str, values: ArrayLike) -> Floats:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name} must be [seeds, tasks] and not empty, got {table.shape}")
    return table


def _placements(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative.

    Both are empty if a class is empty.
    """
    positive: NDArray[Any] = np.asarray(labels, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    if positive.shape != values.shape or values.ndim != 1:
        raise ValueError(f"labels and scores must be [n], got {positive.shape} and {values.shape}")
    high, low = values[positive], values[~positive]
    if not len(high) or not len(low):
        return np.zeros(0), np.zeros(0)
    return _share_below(high, low), 1 - _share_below(low, high)


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    strictly = np.searchsorted(ordered, values, side="left")
    equally = np.searchsorted(ordered, values, side="right")
    share: Floats = (strictly + equally) / (2 * len(ordered))
    return share
