"""Sparse draws of the features that fire in each row, at a cost proportional to their number."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

_BUCKETS_PER_FEATURE = 4


class Fired(NamedTuple):
    """Pairs of a row and a feature that fires in it, in the order of rows."""

    row: Whole
    feature: Whole


class Firing:
    """Features that fire independently of each other, given the context of a row.

    A feature of rate p is an interval of length -log(1 - p) on a line. A row is a Poisson process
    of rate one on it, and a feature fires where its interval holds a point: with probability p, and
    independently of all others, since intervals do not overlap. The lines of all rows are traversed
    as one, by exponential steps: nothing is drawn for features that do not fire, points come in
    order of rows and features, and those of one interval are adjacent.
    """

    def __init__(self, rates: Floats):
        """Prepare draws for `rates` [contexts, features] in [0, 1).

        All contexts are equally likely.
        """
        contexts, self._features = rates.shape
        edges = np.zeros((contexts, self._features + 1))
        np.cumsum(-np.log1p(-rates), axis=1, out=edges[:, 1:])
        self._length = edges[:, -1].copy()
        self._upper = edges[:, 1:].ravel()
        self._buckets = _BUCKETS_PER_FEATURE * self._features
        # The bucket of a point bounds the search for its feature to a range of features.
        self._per_length = self._buckets / np.maximum(self._length, 1e-300)
        marks = np.linspace(0, 1, self._buckets + 1)
        last = self._features - 1
        guide = [np.searchsorted(e[1:], marks * e[-1], side="right").clip(max=last) for e in edges]
        self._guide = np.concatenate(guide)

    def draw(self, generator: np.random.Generator, n: int) -> Fired:
        """Draw the features that fire in n rows."""
        contexts = len(self._length)
        context = generator.integers(contexts, size=n) if contexts > 1 else np.zeros(n, np.int64)
        length = self._length[context]
        end = np.cumsum(length)
        points = _walk(generator, float(end[-1]))
        row = np.repeat(np.arange(n), np.diff(np.searchsorted(points, end), prepend=0))
        position = points - (end - length)[row]
        feature = self._at(context[row] if contexts > 1 else None, position)
        fresh = np.ones(len(row), bool)
        fresh[1:] = (feature[1:] != feature[:-1]) | (row[1:] != row[:-1])
        return Fired(row[fresh], feature[fresh])

    def _at(self, context: Whole | None, position: Floats) -> Whole:
        """Return the feature at each position on the line of its context."""
        scale = self._per_length[0] if context is None else self._per_length[context]
        # Rounding may put a point slightly outside its line.
        bucket = np.clip((position * scale).astype(np.int64), 0, self._buckets - 1)
        if context is not None:
            bucket += context * (self._buckets + 1)
        low: Whole = self._guide[bucket]
        high: Whole = self._guide[bucket + 1]
        base = np.zeros_like(low) if context is None else context * self._features
        several = np.flatnonzero(high - low > 1)
        low += (position >= self._upper[base + low]) & (low < high)
        # Few buckets hold more than one edge; for these, search by bisection.
        base, position = base[several], position[several]
        left, right = low[several], high[several]
        while (left < right).any():
            middle = (left + right) // 2
            beyond = position >= self._upper[base + middle]
            left, right = np.where(beyond, middle + 1, left), np.where(beyond, right, middle)
        low[several] = left
        return low


def _walk(generator: np.random.Generator, end: float) -> Floats:
    """Return the points before `end` of a Poisson process of rate one."""
    expected = int(end + 6 * end**0.5) + 16
    points = np.cumsum(generator.standard_exponential(expected))
    while points[-1] < end:
        more = np.cumsum(generator.standard_exponential(expected))
        points = np.concatenate([points, points[-1] + more])
    return points[: np.searchsorted(points, end)]


class Children:
    """Draws of the children that fire with their parent, level by level."""

    def __init__(self, parent: NDArray[np.int64], rates: NDArray[np.float64]):
        """Prepare draws for a forest of features.

        `parent` [m] holds the parent of each feature, or -1; `rates` [m] the probability that a
        child fires if its parent does.
        """
        child = np.flatnonzero(parent >= 0)
        child = child[np.argsort(parent[child], kind="stable")]
        above = parent[child]
        count = np.bincount(above, minlength=len(parent))
        place = np.arange(len(child)) - (np.cumsum(count) - count)[above]
        self._child = np.zeros((len(parent), count.max()), np.int64)
        self._child[above, place] = child
        share = np.zeros(self._child.shape)
        share[above, place] = rates[child]
        # Without further children the sum stays constant, and no draw falls in between.
        self._upper = np.cumsum(share, axis=1)
        self._any = count > 0

    def join(self, generator: np.random.Generator, fired: Fired) -> Fired:
        """Return `fired` and the drawn descendants, in the order of rows."""
        levels = [fired]
        while len(fired.row):
            above = np.flatnonzero(self._any[fired.feature])
            row, parent = fired.row[above], fired.feature[above]
            place = (generator.random(len(parent))[:, None] >= self._upper[parent]).sum(1)
            chosen = place < self._upper.shape[1]
            fired = Fired(row[chosen], self._child[parent[chosen], place[chosen]])
            levels.append(fired)
        row, feature = (np.concatenate(part) for part in zip(*levels, strict=True))
        order = np.argsort(row, kind="stable")
        return Fired(row[order], feature[order])
