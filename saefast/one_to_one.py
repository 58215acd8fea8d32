"""The best one-to-one matching of unit rows: solved on a few arcs, proven for all pairs."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.assignment import Assignment, Graph, best_assignment
from saefast.directions import Directions, similarities
from saefast.engines import Encode
from saefast.neighbours import nearest
from saefast.types import SparseCode

TOLERANCE = 1e-10
"""How far below the bound a certified matching may be, for every row"""
UNMATCHED = -2.0
"""What a row without a partner counts where nobody may decline: worse than any cosine"""
_FOUND_PER_ROW = 8


class Arcs(NamedTuple):
    """Pairs of a row and a column, and their similarities."""

    row: Tensor
    column: Tensor
    similarity: Tensor

    @classmethod
    def of_lists(cls, lists: SparseCode) -> "Arcs":
        """Each row with the columns in its list."""
        indices, values = lists.indices.cpu(), lists.values.cpu()
        row = torch.arange(len(indices)).repeat_interleave(indices.shape[1])
        return cls(row, indices.flatten(), values.flatten())

    def only(self, those: Tensor) -> "Arcs":
        """The arcs of this mask."""
        return Arcs(*(values[those] for values in self))

    def turned(self) -> "Arcs":
        """Rows as columns."""
        return Arcs(self.column, self.row, self.similarity)

    def joined(self, other: "Arcs") -> "Arcs":
        """The arcs of both."""
        return Arcs(*(torch.cat(both) for both in zip(self, other, strict=True)))

    def graph(self, rows: int, columns: int) -> Graph:
        """Row after row, each pair once: it has one similarity, whichever list it came from."""
        key, order = (self.row * columns + self.column).sort()
        first = key.diff(prepend=key.new_tensor([-1])) != 0
        key, order = key[first], order[first]
        row_start = torch.searchsorted(key, torch.arange(rows + 1) * columns)
        return Graph(row_start, (key % columns).int(), self.similarity[order], columns)


class OneToOne(NamedTuple):
    """A matching, and prices that no pair beats: the sum of prices bounds every matching."""

    partner: Tensor
    """[rows] int64, -1 for none"""
    row_price: Tensor
    column_price: Tensor
    rounds: int


def match_one_to_one(
    a: Directions,
    b: Directions,
    forward: SparseCode,
    backward: SparseCode,
    floor: float,
    absolute: bool,
    seconds: float,
    memory: float,
) -> OneToOne:
    """Features of `a` with features of `b`, best in sum; one without a partner counts `floor`.

    `forward` lists what is nearest to each row, `backward` to each column. The prices of a solution
    on these arcs are compared with all other pairs, and those that beat them become arcs too.
    """
    end = time.monotonic() + seconds
    arcs = Arcs.of_lists(forward).joined(Arcs.of_lists(backward).turned())
    arcs = arcs.joined(_diagonal(a, b, absolute))
    # What a list leaves out is at most what it ends in.
    row_reach, column_reach = forward.values[:, -1].cpu(), backward.values[:, -1].cpu()
    solution: Assignment | None = None
    rounds = 0
    while True:
        rounds += 1
        graph = arcs.graph(len(a), len(b))
        left = end - time.monotonic()
        solution = best_assignment(graph, floor, start=solution, seconds=left)
        row_price, column_price = solution.row_price, solution.column_price
        row = _suspects(row_reach, row_price, column_reach, column_price)
        column = _suspects(column_reach, column_price, row_reach, row_price)
        if not len(row) or not len(column):
            break
        k = min(_FOUND_PER_ROW, len(column))
        suspects = a.subset(row.to(a.device)), b.subset(column.to(b.device))
        price = column_price[column].to(b.device)
        found = nearest(*suspects, k, Encode(absolute), memory, price)
        excess = found.values[:, 0].cpu() - row_price[row]
        new = _beating(found, row, column, solution, a, b, absolute)
        if not solution.finished or not len(new.row) or time.monotonic() > end:
            row_price[row] += excess.clamp(min=0)
            break
        arcs = arcs.joined(new)
    return OneToOne(solution.partner, row_price, column_price, rounds)


def _diagonal(a: Directions, b: Directions, absolute: bool) -> Arcs:
    """Row i with column i, so that nobody has to stay without a partner."""
    i = torch.arange(min(len(a), len(b)))
    return _arcs(a, i, b, i, absolute)


def _arcs(a: Directions, i: Tensor, b: Directions, j: Tensor, absolute: bool) -> Arcs:
    similarity = similarities(a, i.to(a.device), b, j.to(b.device), absolute)
    return Arcs(i, j, similarity.cpu())


def _suspects(reach: Tensor, price: Tensor, other_reach: Tensor, other_price: Tensor) -> Tensor:
    """Which nodes could be in a pair that no list has and that is above the sum of its prices.

    A pair in no list is at most min(reach[i], other_reach[j]). So j matters to i only if
    other_price[j] < reach[i] - price[i]: of those, sorted by price, the first few.
    """
    ordered, order = other_price.sort()
    gain = (other_reach - other_price)[order].cummax(0).values
    few = torch.searchsorted(ordered, reach - price)
    most = torch.cat([gain.new_tensor([-math.inf]), gain])[few]
    return (most > price).nonzero()[:, 0]


def _beating(
    found: SparseCode,
    row: Tensor,
    column: Tensor,
    solution: Assignment,
    a: Directions,
    b: Directions,
    absolute: bool,
) -> Arcs:
    """The pairs found that are above the sum of their prices: none of them is an arc already."""
    columns = found.indices.cpu()
    near = found.values.cpu() > solution.row_price[row, None]  # gains, after the columns' prices
    where, rank = near.nonzero(as_tuple=True)
    new = _arcs(a, row[where], b, column[columns[where, rank]], absolute)
    prices = solution.row_price[new.row] + solution.column_price[new.column]
    return new.only(new.similarity > prices + TOLERANCE)
