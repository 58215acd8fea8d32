"""Which feature of one dictionary is which of another, by cosine."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from tqdm import tqdm

from saefast import checks
from saefast.dictionary import SIDES, Features
from saefast.match.engines import APPROXIMATE, BACKENDS, engine_for
from saefast.match.memory import divided
from saefast.match.neighbours import Report, nearest_both_ways
from saefast.match.one_to_one import TOLERANCE, UNMATCHED, match_one_to_one
from saefast.match.recall import print_recall
from saefast.match.result import Matches, Proof
from saefast.match.unfinished import Unfinished
from saefast.types import SparseCode
from saefast.unit_rows import UnitRows, similarities


def match_features(
    a: Features,
    b: Features,
    *,
    one_to_one: bool = False,
    side: str = "decoder",
    neighbours: int = 64,
    absolute: bool = False,
    floor: float | None = None,
    seconds: float | None = None,
    backend: str = "auto",
    memory: float = 4.0,
    progress: bool = True,
) -> Matches:
    """Find a partner among the features of `b` for each feature of `a`.

    Args:
        a: one dictionary: a tensor [m, d] such as `W_dec`, an SAE or a `Dictionary`. Features that
            are dead (rows of zeros, or a firing rate of zero) have no partner and are nobody's.
        b: the other, with m2 features.
        one_to_one: False gives each feature its nearest, so that two may share one. True gives the
            pairs, each feature in at most one, whose similarities have the greatest sum.
        side: which rows are compared: "decoder", "encoder", or "both": then similarity is the mean
            of both cosines.
        neighbours: how long the lists are that `one_to_one` begins with, where there is memory for
            them. They save rounds; the result is the same.
        absolute: whether opposite directions are alike.
        floor: features less similar than this are not matched. With `one_to_one` what is maximised
            is the sum of what similarities have above it.
        seconds: how long `one_to_one` may look for better matchings, after the lists are made; None
            sets no limit. What is found by then is returned, with its bound.
        backend: who finds the nearest. "saefast" and "faiss" (all GPUs that FAISS sees, or the CPU)
            find the same, in float64; "auto" takes what a measurement finds faster, where both are
            installed and it matters. "ivf", "hnsw" and "cagra" are approximate indexes of FAISS:
            they print how many of the true nearest they found, and prove nothing.
        memory: gigabytes that lists of neighbours, blocks of features and the graph of `one_to_one`
            may take, beside the dictionaries. Where that is too little to prove the best matching,
            a warning says so, and the best found is returned, with its bound.
        progress: show a progress bar on stderr, if it takes more than two seconds.

    Returns:
        `Matches`, for the features of `a`. `certified` tells whether `one_to_one` is proven optimal
        among all pairs of the two dictionaries; no matching is worth more than `upper_bound`.
    """
    how = Matching(one_to_one, side, neighbours, absolute, floor, seconds, backend, memory)
    x, y = UnitRows.of(a, side, "a"), UnitRows.of(b, side, "b")
    check_pair("a", x, "b", y)
    with pairs_bar(2 * len(x) * len(y), progress) as bar:
        return match_both(x, y, how, bar.update)[0]


class SearchOptions(TypedDict, total=False):
    """Options of `match_features` for how partners are found."""

    neighbours: int
    floor: float | None
    seconds: float | None
    backend: str
    memory: float


class MatchOptions(SearchOptions, total=False):
    """Options of `match_features` but `progress`."""

    one_to_one: bool
    side: str
    absolute: bool


@dataclass(frozen=True)
class Matching:
    """What `match_features` was asked for."""

    one_to_one: bool = False
    side: str = "decoder"
    neighbours: int = 64
    absolute: bool = False
    floor: float | None = None
    seconds: float | None = None
    backend: str = "auto"
    memory: float = 4.0

    def __post_init__(self) -> None:
        checks.one_of("side", self.side, SIDES)
        checks.one_of("backend", self.backend, BACKENDS)
        checks.whole("neighbours", self.neighbours)
        checks.at_least("neighbours", self.neighbours, 1)
        if self.floor is not None:
            checks.at_least("floor", self.floor, -1)
        if self.seconds is not None:
            checks.at_least("seconds", self.seconds, 0)
        checks.at_least("memory", self.memory, 0)
        if self.one_to_one and self.backend in APPROXIMATE:
            raise ValueError(
                f"backend must be exact for one_to_one, which proves its result, got "
                f"{self.backend!r}; use 'auto'"
            )


def check_pair(name: str, x: UnitRows, other: str, y: UnitRows) -> None:
    """Both can be compared."""
    if x.width != y.width:
        raise ValueError(f"{other} must have the width of {name}, {x.width}, got {y.width}")
    if x.device != y.device:
        raise ValueError(f"{other} must be on the device of {name}, {x.device}, got {y.device}")


def pairs_bar(pairs: int, progress: bool) -> "tqdm[None]":
    """A progress bar over pairs of features, each looked at from both sides."""
    return tqdm(
        desc="matching",
        total=pairs,
        unit="pair",
        unit_scale=True,
        delay=2,
        disable=not progress,
    )


def match_both(
    x: UnitRows,
    y: UnitRows,
    how: Matching,
    report: Report,
    unfinished: Unfinished | None = None,
) -> tuple[Matches, Matches]:
    """The partners of x's features among y's, and of y's among x's: one search gives both.

    It goes on from what an interrupted one left `unfinished`.
    """
    unfinished = unfinished or Unfinished()
    if not len(x) or not len(y):
        return _unmatched(x, y, how), _unmatched(y, x, how)
    wanted = how.neighbours if how.one_to_one else 1
    k, _, rest = divided(how.memory * 1e9, len(x), len(y), wanted, how.one_to_one)
    engine = engine_for(how.backend, how.absolute, x, y, k)
    forward, backward = nearest_both_ways(x, y, k, engine, rest, report, unfinished)
    if not engine.exact:
        print_recall(how.backend, x, y, forward, how.absolute)
    if not how.one_to_one:
        pair = _Pair(x, y, forward.indices[:, 0], backward.indices[:, 0])
        return pair.nearest(how), pair.turned().nearest(how)
    return _one_to_one(x, y, forward, backward, how, rest, unfinished)


class _Pair(NamedTuple):
    """Two dictionaries, and who is nearest to whom."""

    x: UnitRows
    y: UnitRows
    forward: Tensor
    backward: Tensor

    def turned(self) -> "_Pair":
        return _Pair(self.y, self.x, self.backward, self.forward)

    def nearest(self, how: Matching) -> Matches:
        """Partners may be shared."""
        similarity = self._similarity(self.forward, how)
        near = torch.ones_like(self.forward, dtype=torch.bool)
        if how.floor is not None:
            near = similarity >= how.floor
        return self.matches(self.forward.where(near, -1), similarity)

    def matches(self, partner: Tensor, similarity: Tensor) -> Matches:
        """What is known of the features alive, at their places among all."""
        column, paired = partner.clamp(min=0), partner >= 0
        mutual = (self.forward == column) & paired
        mutual &= self.backward[column] == torch.arange(len(column), device=column.device)
        place = self.y.place[column].where(paired, -1)
        return Matches(
            partner=spread(place, self.x, -1),
            similarity=spread((similarity * paired).to(self.x.dtype), self.x),
            mutual=spread(mutual, self.x),
        )

    def _similarity(self, column: Tensor, how: Matching) -> Tensor:
        i = torch.arange(len(column), device=column.device)
        return similarities(self.x, i, self.y, column, how.absolute)


def _one_to_one(
    x: UnitRows,
    y: UnitRows,
    forward: SparseCode,
    backward: SparseCode,
    how: Matching,
    memory: float,
    unfinished: Unfinished,
) -> tuple[Matches, Matches]:
    least = UNMATCHED if how.floor is None else how.floor
    limit = math.inf if how.seconds is None else how.seconds
    found = match_one_to_one(
        *(x, y, forward, backward, least, how.absolute, limit, memory, unfinished)
    )
    partner = found.partner.to(x.device)
    paired = (partner >= 0).nonzero()[:, 0]
    chosen = similarities(x, paired, y, partner[paired], how.absolute)
    # Where rows may decline, similarity counts from the floor; otherwise the shorter side is full.
    declining = len(x) if how.floor is not None else max(len(x) - len(y), 0)
    worth = float(chosen.sum()) + least * (len(x) - len(paired)) - least * declining
    bound = float(found.row_price.sum() + found.column_price.sum()) - least * declining
    certified = bound - worth <= TOLERANCE * len(x)
    if found.full and not certified:
        warnings.warn(
            f"memory={how.memory:g} GB is too little to prove the best matching: the one returned "
            f"is at most {bound - worth:.3g} below it",
            stacklevel=2,
        )
    pair = _Pair(x, y, forward.indices[:, 0], backward.indices[:, 0])
    there, back = chosen.new_zeros(len(x)), chosen.new_zeros(len(y))
    there[paired], back[partner[paired]] = chosen, chosen
    returning = torch.full((len(y),), -1, device=x.device)
    returning[partner[paired]] = paired
    rows, columns = found.row_price.to(x.device), found.column_price.to(x.device)
    matches, turned = pair.matches(partner, there), pair.turned().matches(returning, back)
    proof = Proof(
        value=worth,
        upper_bound=bound,
        certified=certified,
        rounds=found.rounds,
        row_price=spread(rows, x),
        column_price=spread(columns, y),
    )
    # A row that may stay without a partner has the price `least`, a column 0.
    back_proof = replace(
        proof, row_price=spread(columns + least, y), column_price=spread(rows - least, x)
    )
    return replace(matches, proof=proof), replace(turned, proof=back_proof)


def spread(values: Tensor, alive: UnitRows, dead: int = 0) -> Tensor:
    """What is known of the features alive, at their places; `dead` elsewhere."""
    return values.new_full((alive.size,), dead).index_copy(0, alive.place, values)


def _unmatched(x: UnitRows, y: UnitRows, how: Matching) -> Matches:
    """What comes of a side without a feature."""
    matches = Matches(
        partner=torch.full((x.size,), -1, device=x.device),
        similarity=torch.zeros(x.size, dtype=x.dtype, device=x.device),
        mutual=torch.zeros(x.size, dtype=torch.bool, device=x.device),
    )
    if not how.one_to_one:
        return matches
    proof = Proof(
        value=0.0,
        upper_bound=0.0,
        certified=True,
        rounds=0,
        row_price=torch.zeros(x.size, dtype=torch.float64, device=x.device),
        column_price=torch.zeros(y.size, dtype=torch.float64, device=y.device),
    )
    return replace(matches, proof=proof)
