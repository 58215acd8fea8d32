"""Features that fire only where their parent does, one of its children at most."""

import numpy as np
from numpy.typing import NDArray

from saefast.synthetic.firing import Fired


class Children:
    """For each feature that fires, draws which of its children fires with it, and so on down."""

    def __init__(self, parent: NDArray[np.int64], rates: NDArray[np.float64]):
        """`rates` [m]: how often a child fires where its parent does."""
        child = np.flatnonzero(parent >= 0)
        child = child[np.argsort(parent[child], kind="stable")]
        above = parent[child]
        count = np.bincount(above, minlength=len(parent))
        place = np.arange(len(child)) - (np.cumsum(count) - count)[above]
        self._child = np.zeros((len(parent), count.max()), np.int64)
        self._child[above, place] = child
        share = np.zeros(self._child.shape)
        share[above, place] = rates[child]
        # Where there is no child the sum stays, and nothing falls between.
        self._upper = np.cumsum(share, axis=1)
        self._any = count > 0

    def join(self, generator: np.random.Generator, fired: Fired) -> Fired:
        """`fired` and its descendants, in the order of rows."""
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
