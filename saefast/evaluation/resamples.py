"""Resamples of seeds and tasks for bootstraps, with the tails that few items need.

Resamples of a few seeds have the right variance but no tails: of two seeds they are either one or
the other, and the interval that holds 95 % of them contains the truth half of the time. So the
deviation of each resample from the mean has a random factor, by which it gets the tails of
Student's t.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Resamples(NamedTuple):
    """Resamples of items."""

    counts: Floats
    """[draws, n] number of times that each item occurs"""
    factors: Floats
    """[draws] factor of the deviation from the mean over all items"""


def resamples_of(generator: np.random.Generator, n: int, draws: int) -> Resamples:
    """Draw resamples of n - 1 of n items, with factors of their deviations.

    The variance of resamples of n items would be smaller than the variance of the mean by the
    ratio (n - 1) / n, which matters for a few seeds (Rao and Wu 1988). A normal deviation times a
    factor has Student's distribution with n - 1 degrees of freedom.

    Args:
        generator: source of random numbers.
        n: number of items.
        draws: number of resamples.

    Returns:
        The resamples. Of a single item all are the item itself.
    """
    freedom = max(n - 1, 1)
    counts = generator.multinomial(freedom, np.full(n, 1 / n), size=draws).astype(np.float64)
    return Resamples(counts, np.sqrt(freedom / generator.chisquare(freedom, draws)))


def resampled_means(table: Floats, seeds: Resamples, tasks: Resamples) -> Floats:
    """Return the mean of each resample of seeds and tasks, [draws]; NaN where it has no value.

    Args:
        table: [seeds, tasks] values; NaN where there is none.
        seeds: resamples of the seeds.
        tasks: as many resamples of the tasks.
    """
    value, all_seeds = mean_of_known(table), np.ones_like(seeds.counts)
    of_tasks = _weighted(table, all_seeds, tasks.counts)
    of_both = _weighted(table, seeds.counts, tasks.counts)
    return value + tasks.factors * (of_tasks - value) + seeds.factors * (of_both - of_tasks)


def mean_of_known(table: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = ~np.isnan(table)
    return float(table[known].mean()) if known.any() else float("nan")


def _weighted(table: Floats, seeds: Floats, tasks: Floats) -> Floats:
    """Return means [draws] weighted by numbers of seeds [draws, s] and of tasks [draws, t]."""
    known = ~np.isnan(table)
    total = ((seeds @ np.where(known, table, 0.0)) * tasks).sum(1)
    number = ((seeds @ known.astype(np.float64)) * tasks).sum(1)
    means: Floats = np.full(len(total), np.nan)
    np.divide(total, number, out=means, where=number > 0)
    return means
