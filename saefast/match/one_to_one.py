"""Optimal one-to-one matching of unit rows, solved on few arcs and certified for all pairs."""

import math
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.match.assignment import Assignment, Graph, best_assignment
from saefast.match.engines import Encode
from saefast.match.neighbours import Search, nearest
from saefast.match.plan import ARC, arcs_in
from saefast.match.result import Matches, Pair, Proof, spread
from saefast.match.saved import Unfinished
from saefast.types import SparseCode
from saefast.unit_rows import UnitRows, similarities

TOLERANCE = 1e-10
"""Maximum difference between the bound and the value of a certified matching, per row"""
UNMATCHED = -2.0
"""Value of a row without a partner if there is no floor: less than any cosine"""
_FOUND_PER_ROW = 8


class Arcs(NamedTuple):
    """Pairs of a row and a column, and their similarities."""

    row: Tensor
    """[arcs] int64"""
    column: Tensor
    """[arcs] int64"""
    similarity: Tensor
    """[arcs] float64"""

    @classmethod
    def of_lists(cls, lists: SparseCode) -> "Arcs":
        """Return the arcs from each row to the columns in its list."""
        indices, values = lists.indices.cpu(), lists.values.cpu()
        row = torch.arange(len(indices), device="cpu").repeat_interleave(indices.shape[1])
        return cls(row, indices.flatten(), values.flatten())

    def only(self, those: Tensor) -> "Arcs":
        """Return the arcs that a mask selects."""
        return Arcs(*(values[those] for values in self))

    def turned(self) -> "Arcs":
        """Exchange rows and columns."""
        return Arcs(self.column, self.row, self.similarity)

    def joined(self, other: "Arcs") -> "Arcs":
        """Return the arcs of both."""
        return Arcs(*(torch.cat(both) for both in zip(self, other, strict=True)))

    def graph(self, rows: int, columns: int) -> Graph:
        """Return the graph of the arcs without duplicates, whose similarities are equal."""
        key, order = (self.row * columns + self.column).sort()
        first = key.diff(prepend=key.new_tensor([-1])) != 0
        key, order = key[first], order[first]
        row_start = torch.searchsorted(key, torch.arange(rows + 1, device="cpu") * columns)
        return Graph(row_start, (key % columns).int(), self.similarity[order], columns)


class OneToOne(NamedTuple):
    """Best one-to-one matching found, from both sides."""

    forward: Matches
    """matches of the features of x with those of y"""
    backward: Matches
    """matches of the features of y with those of x"""
    full: bool
    """whether pairs were left out for lack of memory"""


def match_one_to_one(
    search: Search,
    forward: SparseCode,
    backward: SparseCode,
    floor: float | None,
    seconds: float | None,
) -> OneToOne:
    """Find the one-to-one matching of x and y with the greatest sum of similarities, and its bound.

    Args:
        search: the two dictionaries and the settings of the search.
        forward: neighbour lists of the features of x.
        backward: neighbour lists of the features of y.
        floor: minimum similarity of a match, which is subtracted from the similarity of each pair;
            None: no minimum.
        seconds: time limit for improving the matching; None: no limit.

    Returns:
        The matching from both sides, with its proof.
    """
    x, y = search.x, search.y
    least = UNMATCHED if floor is None else floor
    found = solved(search, forward, backward, least, math.inf if seconds is None else seconds)
    partner = found.partner.to(x.device)
    paired = (partner >= 0).nonzero()[:, 0]
    chosen = similarities(x, paired, y, partner[paired], search.absolute)
    # With a floor, rows may stay without a partner, and the value is the sum of similarities above
    # it. Without one, all features of the smaller side have a partner.
    declining = len(x) if floor is not None else max(len(x) - len(y), 0)
    worth = float(chosen.sum()) + least * (len(x) - len(paired)) - least * declining
    bound = float(found.row_price.sum() + found.column_price.sum()) - least * declining
    pair = Pair(x, y, forward.indices[:, 0], backward.indices[:, 0], search.absolute)
    there, back = chosen.new_zeros(len(x)), chosen.new_zeros(len(y))
    there[paired], back[partner[paired]] = chosen, chosen
    returning = torch.full((len(y),), -1, device=x.device)
    returning[partner[paired]] = paired
    rows, columns = found.row_price.to(x.device), found.column_price.to(x.device)
    matches, turned = pair.matches(partner, there), pair.turned().matches(returning, back)
    proof = Proof(
        value=worth,
        upper_bound=bound,
        certified=bound - worth <= TOLERANCE * len(x),
        rounds=found.rounds,
        row_price=spread(rows, x),
        column_price=spread(columns, y),
    )
    # The least price is `least` for a row, which may stay without a partner, and 0 for a column.
    back_proof = replace(
        proof, row_price=spread(columns + least, y), column_price=spread(rows - least, x)
    )
    return OneToOne(replace(matches, proof=proof), replace(turned, proof=back_proof), found.full)


class Solution(NamedTuple):
    """Matching with prices whose sum bounds the value of every matching.

    No pair of a row and a column is more similar than the sum of their prices.
    """

    partner: Tensor
    """[rows] int64, column of each row; -1 for none"""
    row_price: Tensor
    """[rows] float64"""
    column_price: Tensor
    """[columns] float64"""
    rounds: int
    """number of times that the matching was solved and compared with all pairs"""
    full: bool
    """whether arcs were left out for lack of memory"""


def solved(
    search: Search, forward: SparseCode, backward: SparseCode, floor: float, seconds: float
) -> Solution:
    """Find the matching with the greatest sum, in which a row without a partner counts `floor`.

    The matching is solved on the arcs of the neighbour lists of rows, `forward`, and of columns,
    `backward`. Its prices are compared with all other pairs, and pairs above the sum of their
    prices are added as arcs, until there are none, or time or memory is used up. The prices are
    valid bounds in these cases as well.

    Returns:
        The matching and its prices, with the number of rounds.
    """
    a, b, absolute = search.x, search.y, search.absolute
    end = time.monotonic() + seconds
    arcs = Arcs.of_lists(forward).joined(Arcs.of_lists(backward).turned())
    arcs = arcs.joined(_diagonal(a, b, absolute))
    solution, added, rounds = _known(search.saved)
    arcs = arcs.joined(added)
    # Pairs that are in no list are at most as similar as the last entry of a list.
    row_reach, column_reach = forward.values[:, -1].cpu(), backward.values[:, -1].cpu()
    while True:
        rounds += 1
        full = False
        left = end - time.monotonic()
        # No reference to the graph is kept, since memory suffices for one at a time.
        solution = best_assignment(arcs.graph(len(a), len(b)), floor, start=solution, seconds=left)
        row_price, column_price = solution.row_price, solution.column_price
        row = _suspects(row_reach, row_price, column_reach, column_price)
        column = _suspects(column_reach, column_price, row_reach, row_price)
        if not len(row) or not len(column):
            break
        k = min(_FOUND_PER_ROW, len(column))
        suspects = a.subset(row.to(a.device)), b.subset(column.to(b.device))
        price = column_price[column].to(b.device)
        room = search.memory - ARC * len(arcs.row)
        found = nearest(*suspects, k, Encode(absolute), room, price)
        excess = found.values[:, 0].cpu() - row_price[row]
        new = _beating(found, row, column, solution, a, b, absolute)
        full = len(new.row) > arcs_in(room)
        if full:
            new = _greatest(new, solution, arcs_in(room))
        if not solution.finished or not len(new.row) or time.monotonic() > end:
            row_price[row] += excess.clamp(min=0)
            break
        arcs, added = arcs.joined(new), added.joined(new)
        search.saved.keep(
            rounds=torch.tensor(rounds, device="cpu"), **added._asdict(), **_named(solution)
        )
    partner = solution.partner if floor > UNMATCHED else _completed(solution.partner, len(b))
    return Solution(partner, row_price, column_price, rounds, full)


def _completed(partner: Tensor, columns: int) -> Tensor:
    """Pair unmatched rows with free columns, if missing arcs or a time limit left any."""
    rows = (partner < 0).nonzero()[:, 0]
    free = torch.ones(columns, dtype=torch.bool, device="cpu").index_fill(
        0, partner[partner >= 0], False
    )
    left = free.nonzero()[: len(rows), 0]
    return partner.index_copy(0, rows[: len(left)], left)


def _known(saved: Unfinished) -> tuple[Assignment | None, Arcs, int]:
    """Return the solution, added arcs and number of rounds that `solved` has saved."""
    kept = saved.tensors
    if "rounds" not in kept:
        none = torch.zeros(0, dtype=torch.int64, device="cpu")
        return None, Arcs(none, none, none.double()), 0
    arcs = Arcs(*(kept[name] for name in Arcs._fields))
    prices = kept["partner"], kept["row_price"], kept["column_price"]
    return Assignment(*prices, finished=True), arcs, int(kept["rounds"])


def _named(solution: Assignment) -> dict[str, Tensor]:
    tensors = solution._asdict()
    del tensors["finished"]
    return tensors


def _diagonal(a: UnitRows, b: UnitRows, absolute: bool) -> Arcs:
    """Return the arcs from row i to column i, with which a complete matching exists."""
    i = torch.arange(min(len(a), len(b)), device="cpu")
    return _arcs(a, i, b, i, absolute)


def _arcs(a: UnitRows, i: Tensor, b: UnitRows, j: Tensor, absolute: bool) -> Arcs:
    similarity = similarities(a, i.to(a.device), b, j.to(b.device), absolute)
    return Arcs(i, j, similarity.cpu())


def _suspects(reach: Tensor, price: Tensor, other_reach: Tensor, other_price: Tensor) -> Tensor:
    """Return the nodes that may be in a pair above the sum of its prices that is in no list.

    The similarity of a pair in no list is at most min(reach[i], other_reach[j]). So j is relevant
    for i only if other_price[j] < reach[i] - price[i], which holds for the first nodes in order of
    price.
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
    a: UnitRows,
    b: UnitRows,
    absolute: bool,
) -> Arcs:
    """Return the found pairs above the sum of their prices, none of which can be an arc already."""
    columns = found.indices.cpu()
    near = found.values.cpu() > solution.row_price[row, None]  # gains, after the columns' prices
    where, rank = near.nonzero(as_tuple=True)
    new = _arcs(a, row[where], b, column[columns[where, rank]], absolute)
    prices = solution.row_price[new.row] + solution.column_price[new.column]
    return new.only(new.similarity > prices + TOLERANCE)


def _greatest(new: Arcs, solution: Assignment, most: int) -> Arcs:
    """Return the arcs that exceed the sum of their prices most, at most `most` of them."""
    excess = new.similarity - solution.row_price[new.row] - solution.column_price[new.column]
    first = excess.argsort(descending=True, stable=True)[: max(most, 0)].sort().values
    return Arcs(*(values[first] for values in new))
