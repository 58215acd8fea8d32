"""The best one-to-one matching of unit rows: solved on a few arcs, proven for all pairs."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.assignment import Assignment, Graph, best_assignment
from saefast.ops.gather_dots import gather_dots
from saefast.ops.topk_encode import topk_encode
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
        row = torch.arange(len(lists.indices)).repeat_interleave(lists.indices.shape[1])
        return cls(row, lists.indices.flatten(), lists.values.flatten())

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


def nearest(
    x: Tensor, others: Tensor, k: int, absolute: bool, price: Tensor | None = None
) -> SparseCode:
    """The k of `others` that are most similar to each of `x`, or gain most after their price.

    With `absolute` one of `others` may stand in a list twice, under either sign. Without prices
    that happens only among products of 0, since k is at most len(others).
    """
    bias = None if price is None else -price
    if absolute:
        bias = None if bias is None else bias.repeat(2)
        code = topk_encode(x, torch.cat([others, -others]), bias, k=k)
        return code._replace(indices=code.indices % len(others))
    return topk_encode(x, others, bias, k=k)


def similarities(a: Tensor, b: Tensor, columns: Tensor, absolute: bool) -> Tensor:
    """Of row i of `a` with the rows columns[i] of `b`."""
    dots: Tensor = gather_dots(a, b, columns)
    return dots.abs() if absolute else dots


def match_one_to_one(
    a: Tensor,
    b: Tensor,
    forward: SparseCode,
    backward: SparseCode,
    floor: float,
    absolute: bool,
    seconds: float,
) -> OneToOne:
    """Rows of `a` with rows of `b`, best in sum; a row without a partner counts `floor`.

    `forward` lists what is nearest to each row, `backward` to each column. The prices of a solution
    on these arcs are compared with all other pairs, and those that beat them become arcs too.
    """
    end = time.monotonic() + seconds
    arcs = Arcs.of_lists(forward).joined(Arcs.of_lists(backward).turned())
    arcs = arcs.joined(_diagonal(a, b, absolute))
    # What a list leaves out is at most what it ends in.
    row_reach, column_reach = forward.values[:, -1], backward.values[:, -1]
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
        found = nearest(a[row], b[column], k, absolute, column_price[column])
        excess = found.values[:, 0] - row_price[row]
        new = _beating(found, row, column, solution, a, b, absolute)
        if not solution.finished or not len(new.row) or time.monotonic() > end:
            row_price[row] += excess.clamp(min=0)
            break
        arcs = arcs.joined(new)
    return OneToOne(solution.partner, row_price, column_price, rounds)


def _diagonal(a: Tensor, b: Tensor, absolute: bool) -> Arcs:
    """Row i with column i, so that nobody has to stay without a partner."""
    i = torch.arange(min(len(a), len(b)))
    return Arcs(i, i, similarities(a[i], b, i[:, None], absolute)[:, 0])


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
    a: Tensor,
    b: Tensor,
    absolute: bool,
) -> Arcs:
    """The pairs found that are above the sum of their prices: none of them is an arc already."""
    i, j = row[:, None].expand_as(found.indices), column[found.indices]
    similarity = similarities(a[row], b, j, absolute)
    better = similarity - solution.column_price[j] > solution.row_price[row, None] + TOLERANCE
    return Arcs(i[better], j[better], similarity[better])
