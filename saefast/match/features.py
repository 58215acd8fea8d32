"""Matching of the features of two dictionaries by cosine similarity."""

import warnings
from dataclasses import dataclass, replace
from typing import TypedDict

import torch

from saefast import checks
from saefast.dictionary import SIDES, Features
from saefast.match.engines import APPROXIMATE, BACKENDS, engine_for
from saefast.match.neighbours import Report, Search, nearest_both_ways, recall
from saefast.match.one_to_one import UNMATCHED, match_one_to_one
from saefast.match.plan import divided
from saefast.match.result import Matches, Pair, Proof, spread
from saefast.match.saved import Unfinished
from saefast.progress import ProgressBar
from saefast.unit_rows import UnitRows


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
        a: first dictionary: a tensor [m, d] such as `W_dec`, an SAE or a `Dictionary`. Dead
            features (rows of zeros, or a firing rate of zero) are not matched.
        b: second dictionary, with m2 features of the same width: a tensor [m2, d], an SAE or a
            `Dictionary`.
        one_to_one: False matches each feature with its nearest, which several features may share.
            True finds the one-to-one matching with the greatest sum of similarities.
        side: rows to compare: "decoder", "encoder", or "both", for which the similarity is the mean
            of both cosines.
        neighbours: length of the initial neighbour lists of `one_to_one`, if memory allows. Longer
            lists save rounds; the result is the same.
        absolute: whether opposite directions count as similar.
        floor: minimum similarity of a match; None: no minimum. With `one_to_one` the sum of
            similarities above it is maximised.
        seconds: time limit of the search of `one_to_one`, after the lists are made; the best
            matching found by then is returned with its bound. None: no limit.
        backend: engine of the neighbour search. "saefast" and "faiss" (on all GPUs visible to
            FAISS, or the CPU) are exact and return the same result, in float64; "auto" measures
            which is faster, if both are installed and the problem is large. "ivf", "hnsw" and
            "cagra" are approximate indexes of FAISS: a warning states their recall, and they cannot
            be used with `one_to_one`.
        memory: gigabytes for neighbour lists, blocks of features and the graph of `one_to_one`, in
            addition to the dictionaries. If it is too little to certify the matching, a warning is
            issued and the best matching found is returned with its bound.
        progress: whether to show a progress bar on stderr.

    Returns:
        Matches of the features of `a`. `certified` states whether a one-to-one matching is proven
        optimal among all pairs of the two dictionaries; no matching has a value above
        `upper_bound`.
    """
    how = Matching(one_to_one, side, neighbours, absolute, floor, seconds, backend, memory)
    x, y = UnitRows.of(a, side, "a"), UnitRows.of(b, side, "b")
    check_pair("a", x, "b", y)
    with pairs_bar(2 * len(x) * len(y), progress) as bar:
        return match_both(x, y, how, bar.update)[0]


class SearchOptions(TypedDict, total=False):
    """Options of `match_features` that control the search for partners."""

    neighbours: int
    floor: float | None
    seconds: float | None
    backend: str
    memory: float


class MatchOptions(SearchOptions, total=False):
    """All options of `match_features` except `progress`."""

    one_to_one: bool
    side: str
    absolute: bool


@dataclass(frozen=True)
class Matching:
    """Validated options of `match_features`."""

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
        checks.whole("neighbours", self.neighbours, 1)
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
    """Raise a ValueError unless both dictionaries have the same width and device."""
    if x.width != y.width:
        raise ValueError(f"{other} must have the width of {name}, {x.width}, got {y.width}")
    if x.device != y.device:
        raise ValueError(f"{other} must be on the device of {name}, {x.device}, got {y.device}")


def pairs_bar(pairs: int, progress: bool) -> ProgressBar:
    """Return a progress bar over pairs of features, each counted from both sides."""
    return ProgressBar("matching", total=pairs, unit="pairs", progress=progress)


def match_both(
    x: UnitRows,
    y: UnitRows,
    how: Matching,
    report: Report,
    saved: Unfinished | None = None,
) -> tuple[Matches, Matches]:
    """Match the features of x with those of y, and the reverse, in one search.

    The search resumes from the state of an interrupted one in `saved`.

    Returns:
        Matches of x with y, and of y with x.
    """
    if not len(x) or not len(y):
        return _unmatched(x, y, how), _unmatched(y, x, how)
    wanted = how.neighbours if how.one_to_one else 1
    k, _, rest = divided(how.memory * 1e9, len(x), len(y), wanted, how.one_to_one)
    search = Search(
        x=x,
        y=y,
        engine=engine_for(how.backend, how.absolute, x, y, k),
        absolute=how.absolute,
        memory=rest,
        report=report,
        saved=saved or Unfinished(),
    )
    forward, backward = nearest_both_ways(search, k)
    if not search.engine.exact:
        share = recall(search, forward)
        warnings.warn(
            f"backend={how.backend!r} is approximate: it found {share:.1%} of the {k} nearest "
            f"features of a sample",
            stacklevel=3,
        )
    if not how.one_to_one:
        pair = Pair(x, y, forward.indices[:, 0], backward.indices[:, 0], how.absolute)
        return pair.nearest(how.floor), pair.turned().nearest(how.floor)
    found = match_one_to_one(search, forward, backward, how.floor, how.seconds)
    proof = found.forward.proof
    if found.full and proof is not None and not proof.certified:
        warnings.warn(
            f"memory={how.memory:g} GB is too little to certify the matching: its value is at most "
            f"{proof.upper_bound - proof.value:.3g} below the best",
            stacklevel=3,
        )
    return found.forward, found.backward


def _unmatched(x: UnitRows, y: UnitRows, how: Matching) -> Matches:
    """Return the matches of two dictionaries if one of them has no alive features."""
    matches = Matches(
        partner=torch.full((x.size,), -1, device=x.device),
        similarity=torch.zeros(x.size, dtype=x.dtype, device=x.device),
        mutual=torch.zeros(x.size, dtype=torch.bool, device=x.device),
    )
    if not how.one_to_one:
        return matches
    least = UNMATCHED if how.floor is None else how.floor
    prices = torch.full((len(x),), least, dtype=torch.float64, device=x.device)
    proof = Proof(
        value=0.0,
        upper_bound=0.0,
        certified=True,
        rounds=0,
        row_price=spread(prices, x),
        column_price=torch.zeros(y.size, dtype=torch.float64, device=y.device),
    )
    return replace(matches, proof=proof)
