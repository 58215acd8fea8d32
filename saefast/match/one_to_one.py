"""The best one-to-one matching of unit rows: solved on a few arcs, proven for all pairs."""

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
    """The best one-to-one matching that was found, from both sides."""

    forward: Matches
    """of x's features with y's"""
    backward: Matches
    full: bool
    """whether pairs were left out for want of memory"""


def match_one_to_one(
    search: Search,
    forward: SparseCode,
    backward: SparseCode,
    floor: float | None,
    seconds: float | None,
) -> OneToOne:
    """Match features of x with features of y one to one, best in sum, with a proof.

    Args:
        search: the two dictionaries.
        forward: the nearest of each of x's features.
        backward: the nearest of each of y's features.
        floor: features less similar than this are not matched, and similarity counts from it.
        seconds: how long to look for better matchings; None sets no limit.
    """
    x, y = search.x, search.y
    least = UNMATCHED if floor is None else floor
    found = solved(search, forward, backward, least, math.inf if seconds is None else seconds)
    partner = found.partner.to(x.device)
    paired = (partner >= 0).nonzero()[:, 0]
    chosen = similarities(x, paired, y, partner[paired], search.absolute)
    # Where rows may decline, similarity counts from the floor; otherwise the shorter side is full.
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
    # A row that may stay without a partner has the price `least`, a column 0.
    back_proof = replace(
        proof, row_price=spread(columns + least, y), column_price=spread(rows - least, x)
    )
    return OneToOne(replace(matches, proof=proof), replace(turned, proof=back_proof), found.full)


class Solution(NamedTuple):
    """A matching, and prices that no pair beats: the sum of prices bounds every matching."""

    partner: Tensor
    """[rows] int64, -1 for none"""
    row_price: Tensor
    column_price: Tensor
    rounds: int
    full: bool
    """whether arcs were left out for want of memory"""


def solved(
    search: Search, forward: SparseCode, backward: SparseCode, floor: float, seconds: float
) -> Solution:
    """Solve the matching whose sum is best; a row without a partner counts `floor`.

    `forward` lists what is nearest to each row, `backward` to each column. The prices of a solution
    on these arcs are compared with all other pairs, and those that beat them become arcs too, until
    there are none, or no `seconds` or bytes of memory are left. The prices are a bound then, too.
    """
    a, b, absolute = search.x, search.y, search.absolute
    end = time.monotonic() + seconds
    arcs = Arcs.of_lists(forward).joined(Arcs.of_lists(backward).turned())
    arcs = arcs.joined(_diagonal(a, b, absolute))
    solution, added, rounds = _known(search.saved)
    arcs = arcs.joined(added)
    # What a list leaves out is at most what it ends in.
    row_reach, column_reach = forward.values[:, -1].cpu(), backward.values[:, -1].cpu()
    while True:
        rounds += 1
        full = False
        left = end - time.monotonic()
        # Nothing holds the graph: there is room for one at a time.
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
        search.saved.keep(rounds=torch.tensor(rounds), **added._asdict(), **_named(solution))
    partner = solution.partner if floor > UNMATCHED else _completed(solution.partner, len(b))
    return Solution(partner, row_price, column_price, rounds, full)


def _completed(partner: Tensor, columns: int) -> Tensor:
    """Pair unmatched rows with free columns: the arcs alone, or too little time, may leave some."""
    rows = (partner < 0).nonzero()[:, 0]
    free = torch.ones(columns, dtype=torch.bool).index_fill(0, partner[partner >= 0], False)
    left = free.nonzero()[: len(rows), 0]
    return partner.index_copy(0, rows[: len(left)], left)


def _known(saved: Unfinished) -> tuple[Assignment | None, Arcs, int]:
    """What `solved` kept: a solution, the arcs added to the lists, after which round."""
    kept = saved.tensors
    if "rounds" not in kept:
        nobody = torch.zeros(0, dtype=torch.int64)
        return None, Arcs(nobody, nobody, nobody.double()), 0
    arcs = Arcs(*(kept[name] for name in Arcs._fields))
    prices = kept["partner"], kept["row_price"], kept["column_price"]
    return Assignment(*prices, finished=True), arcs, int(kept["rounds"])


def _named(solution: Assignment) -> dict[str, Tensor]:
    tensors = solution._asdict()
    del tensors["finished"]
    return tensors


def _diagonal(a: UnitRows, b: UnitRows, absolute: bool) -> Arcs:
    """Row i with column i, so that nobody has to stay without a partner."""
    i = torch.arange(min(len(a), len(b)))
    return _arcs(a, i, b, i, absolute)


def _arcs(a: UnitRows, i: Tensor, b: UnitRows, j: Tensor, absolute: bool) -> Arcs:
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
    a: UnitRows,
    b: UnitRows,
    absolute: bool,
) -> Arcs:
    """The pairs found that are above the sum of their prices: none of them is an arc already."""
    columns = found.indices.cpu()
    near = found.values.cpu() > solution.row_price[row, None]  # gains, after the columns' prices
    where, rank = near.nonzero(as_tuple=True)
    new = _arcs(a, row[where], b, column[columns[where, rank]], absolute)
    prices = solution.row_price[new.row] + solution.column_price[new.column]
    return new.only(new.similarity > prices + TOLERANCE)


def _greatest(new: Arcs, solution: Assignment, most: int) -> Arcs:
    """Those that are furthest above their prices, at most so many."""
    excess = new.similarity - solution.row_price[new.row] - solution.column_price[new.column]
    first = excess.argsort(descending=True, stable=True)[: max(most, 0)].sort().values
    return Arcs(*(values[first] for values in new))
