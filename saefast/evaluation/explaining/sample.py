"""Choose latents to be judged: evenly from all firing rates, and groups of equal rates."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from saefast.evaluation.explaining.contexts import Booleans, Integers

RATE_BINS = 10
"""Bins of equally many latents by firing rate"""

_SAMPLE = 0x5A3B  # tells its random numbers from those of other uses of a seed


class FeatureSample(NamedTuple):
    """Latents of one SAE that are judged."""

    overall: Integers
    """ascending; spread evenly over the firing rates"""
    groups: dict[str, Integers]
    """for each group latents, as many of each bin of firing rate as of the other groups"""

    @property
    def all(self) -> Integers:
        """Every latent that is in one of them, ascending."""
        return np.unique(np.concatenate([self.overall, *self.groups.values()]))


def rate_bins(fired: Integers, edges: Integers | None = None) -> Integers:
    """[m] Return the bin of each latent's firing rate, -1 for latents that do not fire.

    Args:
        fired: [m] rows on which each latent fires.
        edges: from `rate_edges` of other latents; None: of these.
    """
    edges = rate_edges(fired) if edges is None else edges
    bins: Integers = np.searchsorted(edges, fired, side="right")
    return np.where(fired > 0, bins, -1)


def rate_edges(fired: Integers) -> Integers:
    """[at most 9] Return the numbers of firings between bins of about equally many latents."""
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
    """Choose latents at random.

    Args:
        candidates: [m] latents that can be judged.
        fired: [m] rows on which each latent fires.
        groups: by name [m], the groups to compare.
        count: latents to choose overall; each group gets half as many at most.
        seed: of the choice.
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
    """One of each of `count` stretches of a list; all of a list that is shorter."""
    if len(ordered) <= count:
        return ordered
    if count == 0:
        return ordered[:0]
    parts = np.array_split(ordered, count)
    return np.array([part[generator.integers(len(part))] for part in parts])


def _shares(common: Integers, total: int) -> list[int]:
    """How many to take of each bin: in proportion to what there is, `total` together at most."""
    available = int(common.sum())
    if available <= total:
        return [int(number) for number in common]
    ends = np.cumsum(common) * total // available
    return [int(number) for number in np.diff(ends, prepend=0)]
