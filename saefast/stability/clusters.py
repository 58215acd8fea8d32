"""Clusters of matching features across several dictionaries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast.stability.result import Stability
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Clusters of features that match each other in different dictionaries.

    Two features of different dictionaries are linked if each is the match of the other by the
    `StabilityRule`. Clusters are the connected components of these links. A cluster whose features
    are all linked with one another is `complete`: it represents one feature that several
    dictionaries contain. Other clusters are chains, whose ends may be dissimilar or belong to the
    same dictionary: the more chains there are, the less reliable are the clusters. A feature
    without links is a complete cluster of size one.
    """

    label: tuple[Tensor, ...]
    """[m] int64 for each dictionary, index of the cluster of each feature; -1 if it is dead"""
    features: Tensor
    """[c] int64, number of features in each cluster; clusters are ordered by descending number of
    dictionaries, then of features"""
    dictionaries: Tensor
    """[c] int64, number of dictionaries that the features of each cluster belong to"""
    complete: Tensor
    """[c] bool, clusters whose features are all linked with one another"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a pyarrow table with a row for each cluster."""
        import pyarrow as pa

        return pa.table(
            {
                "cluster": torch.arange(len(self.features)).numpy(),
                "features": self.features.numpy(),
                "dictionaries": self.dictionaries.numpy(),
                "complete": self.complete.numpy(),
            }
        )

    def by_dictionaries(self) -> list[dict[str, int]]:
        """Count the complete clusters and the chains that span 1, 2, ... dictionaries.

        Returns:
            A dict with "dictionaries", "complete" and "chains" for each number of dictionaries.
        """
        return [
            {
                "dictionaries": count,
                "complete": int((self.complete & (self.dictionaries == count)).sum()),
                "chains": int((~self.complete & (self.dictionaries == count)).sum()),
            }
            for count in range(1, len(self.label) + 1)
        ]


def find_clusters(stability: Stability) -> Clusters:
    """Group the alive features of all dictionaries into clusters of mutual matches.

    The clusters do not depend on the order of dictionaries or features, unless several features are
    equally similar, where matches follow the order. With match="nearest", links connect mutual
    nearest features.

    Args:
        stability: result of `score_stability`.

    Returns:
        Cluster labels [m] for each dictionary, with size and completeness of the clusters.
    """
    sizes = [len(score) for score in stability.score]
    start = torch.tensor([0, *sizes]).cumsum(0)
    first, second = _links(stability, start)
    label = _components(int(start[-1]), first, second)
    alive = torch.cat(stability.alive)
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    # Number the clusters of alive features without gaps.
    names, label_alive = torch.unique(label[alive], return_inverse=True)
    features = torch.bincount(label_alive, minlength=len(names))
    pairs = torch.unique(label_alive * len(sizes) + of[alive])
    dictionaries = torch.bincount(pairs // len(sizes), minlength=len(names))
    links = torch.bincount(torch.searchsorted(names, label[first]), minlength=len(names))
    complete = links == features * (features - 1) // 2
    # Labels are ordered by the first member, and so are clusters of equal rank by the stable sort.
    rank = dictionaries * (len(alive) + 1) + features
    order = rank.argsort(descending=True, stable=True)
    place = torch.empty_like(order).index_copy(0, order, torch.arange(len(order)))
    numbers = torch.full((len(alive),), -1)
    numbers[alive] = place[label_alive]
    return Clusters(
        label=torch.split(numbers, sizes),
        features=features[order],
        dictionaries=dictionaries[order],
        complete=complete[order],
    )


def _links(stability: Stability, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of mutually matching features, by their numbers among all features."""
    first, second = [], []
    for s in range(len(stability.score)):
        for t in range(s + 1, len(stability.score)):
            i = stability.hit[s][:, t].nonzero()[:, 0]
            j = stability.partner[s][i, t]
            returned = stability.hit[t][j, s] & (stability.partner[t][j, s] == i)
            first.append(start[s] + i[returned])
            second.append(start[t] + j[returned])
    return torch.cat(first), torch.cat(second)


def _components(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Return the smallest number in the connected component of each feature, [count]."""
    label = torch.arange(count)
    while True:
        low = torch.minimum(label[first], label[second])
        new = label.clone()
        # Take the minimum label of each link, then replace labels by their labels' labels.
        for ends in (first, second):
            new.scatter_reduce_(0, label[ends], low, "amin")
        while not torch.equal(new[new], new):
            new = new[new]
        if torch.equal(new, label):
            return label
        label = new
