"""Samples of latents to judge: evenly over firing rates, and from groups at equal rates."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from saefast.evaluation.explaining.contexts import Booleans, Integers

RATE_BINS = 10
"""Number of bins of firing rate, with about equally many latents each"""

_SAMPLE = 0x5A3B  # separates these random numbers from other uses of a seed


class FeatureSample(NamedTuple):
    """Sampled latents of one SAE."""

    overall: Integers
    """latents spread evenly over the firing rates, ascending"""
    groups: dict[str, Integers]
    """latents of each group, equally many from each bin of firing rate in all groups"""

    @property
    def all(self) -> Integers:
        """All sampled latents, overall or of a group, ascending."""
        return np.unique(np.concatenate([self.overall, *self.groups.values()]))


def rate_bins(fired: Integers, edges: Integers | None = None) -> Integers:
    """Return the bin of each latent's firing rate, [m]; -1 for latents that do not fire.

    Args:
        fired: [m] number of rows on which each latent fires.
        edges: edges of bins from `rate_edges`; None: edges for these latents.
    """
    edges = rate_edges(fired) if edges is None else edges
    bins: Integers = np.searchsorted(edges, fired, side="right")
    return np.where(fired > 0, bins, -1)


def rate_edges(fired: Integers) -> Integers:
    """Return the edges [at most 9] between bins of about equally many latents by firings."""
    alive = np.sort(fired[fired > 0])
    if not len(alive):
        return np.zeros(0, dtype=np.int64)
    places = np.arange(1, RATE_BINS) * len(alive) // RATE_BINS
    return np.unique(alive[places])


def sample_features(
    candidates: Booleans,
    fired: Integers,
    groups: Mapping[str, Booleans],
    count: int,
    seed: int,
) -> FeatureSample:
    """Choose latents at random, evenly over firing rates.

    Args:
        candidates: [m] bool, latents that can be judged.
        fired: [m] number of rows on which each latent fires.
        groups: by name, mask [m] of each group to compare.
        count: number of latents to choose overall; each group gets at most half as many.
        seed: seed of the choice.

    Returns:
        Indices of the latents, overall and by group.
    """
    generator = np.random.default_rng([_SAMPLE, seed])
    places = np.flatnonzero(candidates)
    by_rate = places[np.lexsort((places, fired[places]))]
    overall = _spread(by_rate, count, generator)
    bins = rate_bins(np.where(candidates, fired, 0))
    cells = {
        name: [by_rate[mask[by_rate] & (bins[by_rate] == number)] for number in range(RATE_BINS)]
        for name, mask in groups.items()
    }
    chosen = {}
    if cells:
        common = np.array([[len(cell) for cell in each] for each in cells.values()]).min(0)
        wanted = _shares(common, count // 2)
        for name, each in cells.items():
            parts = [
                _spread(cell, number, generator) for cell, number in zip(each, wanted, strict=True)
            ]
            chosen[name] = np.sort(np.concatenate(parts))
    return FeatureSample(np.sort(overall), chosen)


def _spread(ordered: Integers, count: int, generator: np.random.Generator) -> Integers:
    """Draw one item from each of `count` equal parts of a list, or return a shorter list whole."""
    if len(ordered) <= count:
        return ordered
    if count == 0:
        return ordered[:0]
    parts = np.array_split(ordered, count)
    return np.array([part[generator.integers(len(part))] for part in parts])


def _shares(common: Integers, total: int) -> list[int]:
    """Return the number to take from each bin, proportional to its size, at most `total` in sum."""
    available = int(common.sum())
    if available <= total:
        return [int(number) for number in common]
    ends = np.cumsum(common) * total // available
    return [int(number) for number in np.diff(ends, prepend=0)]
