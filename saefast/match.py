"""Which feature of one dictionary is which of another, by cosine."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.dictionary import SIDES, Features, as_dictionary, side_of
from saefast.one_to_one import TOLERANCE, UNMATCHED, match_one_to_one, nearest, similarities
from saefast.ops import checks
from saefast.types import Matches, SparseCode


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
        neighbours: how long the lists are that `one_to_one` begins with. It costs memory and saves
            rounds; the result is the same.
        absolute: whether opposite directions are alike.
        floor: features less similar than this are not matched. With `one_to_one` what is maximised
            is the sum of what similarities have above it.
        seconds: how long `one_to_one` may look for better matchings, after the lists are made; None
            sets no limit.

    Returns:
        `Matches`, for the rows of `a`. `certified` tells whether `one_to_one` is proven optimal
        among all pairs of the two dictionaries; no matching is worth more than `upper_bound`.
    """
    checks.one_of("side", side, SIDES)
    a, b = _rows("a", a, side), _rows("b", b, side)
    _check(a, b, neighbours, floor, seconds)
    x, y = _alive(a), _alive(b)
    if not len(x.rows) or not len(y.rows):
        return _unmatched(a, b, one_to_one)
    k = neighbours if one_to_one else 1
    forward = nearest(x.rows, y.rows, min(k, len(y.rows)), absolute)
    backward = nearest(y.rows, x.rows, min(k, len(x.rows)), absolute)
    if not one_to_one:
        near = floor is None or forward.values[:, 0] >= floor
        partner = forward.indices[:, 0].where(torch.as_tensor(near), -1)
        return _matches(a, x, y, partner, forward, backward, absolute)[0]
    least = UNMATCHED if floor is None else floor
    limit = math.inf if seconds is None else seconds
    found = match_one_to_one(x.rows, y.rows, forward, backward, least, absolute, limit)
    matches, similarity = _matches(a, x, y, found.partner, forward, backward, absolute)
    # Where rows may decline, similarity counts from the floor; otherwise the shorter side is full.
    declining = len(x.rows) if floor is not None else max(len(x.rows) - len(y.rows), 0)
    worth = similarity.where(found.partner >= 0, least).sum() - least * declining
    bound = found.row_price.sum() + found.column_price.sum() - least * declining
    return matches._replace(
        value=float(worth),
        upper_bound=float(bound),
        certified=bool(bound - worth <= TOLERANCE * len(x.rows)),
        rounds=found.rounds,
        row_price=_spread(found.row_price, x, len(a)),
        column_price=_spread(found.column_price, y, len(b)),
    )


class _Alive(NamedTuple):
    """The rows that have a direction."""

    rows: Tensor
    """at length 1, float64: their products are then cosines to the last digits"""
    place: Tensor
    """where they stand among all"""


def _rows(name: str, features: Features, side: str) -> Tensor:
    """What is compared of a dictionary: [m, d], or [m, 2 d] of both sides."""
    dictionary = as_dictionary(features, name)
    if side != "both":
        return side_of(dictionary, side, name)
    sides = [side_of(dictionary, each, name).double() for each in ("decoder", "encoder")]
    lengths = [rows.norm(dim=1, keepdim=True).clamp(min=1e-300) for rows in sides]
    return torch.cat([rows / length for rows, length in zip(sides, lengths, strict=True)], 1)


def _alive(features: Tensor) -> _Alive:
    rows = features.detach().double()
    largest = rows.abs().amax(1)
    place = largest.nonzero()[:, 0]
    # Squares of what is divided by the largest neither overflow nor vanish.
    rows = rows[place] / largest[place, None]
    return _Alive(rows / rows.norm(dim=1, keepdim=True), place)


def _matches(
    a: Tensor,
    x: _Alive,
    y: _Alive,
    partner: Tensor,
    forward: SparseCode,
    backward: SparseCode,
    absolute: bool,
) -> tuple[Matches, Tensor]:
    """The partners of `x` among `y` as those of all rows, and similarities in all their digits."""
    column = partner.clamp(min=0)
    paired = partner >= 0
    similarity = similarities(x.rows, y.rows, column[:, None], absolute)[:, 0] * paired
    mutual = (forward.indices[:, 0] == column) & paired
    mutual &= backward.indices[column, 0] == torch.arange(len(column))
    matches = Matches(
        _spread(y.place[column].where(paired, -1), x, len(a), -1),
        _spread(similarity.to(torch.promote_types(a.dtype, torch.float32)), x, len(a)),
        _spread(mutual, x, len(a)),
    )
    return matches, similarity


def _spread(values: Tensor, alive: _Alive, size: int, dead: int = 0) -> Tensor:
    """What is known of the rows alive, at their places; `dead` elsewhere."""
    return values.new_full((size,), dead).index_copy(0, alive.place, values)


def _unmatched(a: Tensor, b: Tensor, one_to_one: bool) -> Matches:
    """What comes of a side without a feature."""
    matches = Matches(
        torch.full((len(a),), -1),
        torch.zeros(len(a), dtype=torch.promote_types(a.dtype, torch.float32)),
        torch.zeros(len(a), dtype=torch.bool),
    )
    if not one_to_one:
        return matches
    prices = [torch.zeros(len(side), dtype=torch.float64) for side in (a, b)]
    return Matches(*matches[:3], 0.0, 0.0, True, 0, *prices)


def _check(
    a: Tensor, b: Tensor, neighbours: int, floor: float | None, seconds: float | None
) -> None:
    for name, features in (("a", a), ("b", b)):
        if features.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {features.device}; pass {name}.cpu()")
    checks.same_kind("a", a, "b", b)
    checks.size("b", b, 1, a.shape[1], "the columns of a")
    checks.between("a.shape[1]", a.shape[1], 1, 2**31 - 1, "the width")
    checks.whole("neighbours", neighbours)
    checks.at_least("neighbours", neighbours, 1)
    if floor is not None:
        checks.at_least("floor", floor, -1)
    if seconds is not None:
        checks.at_least("seconds", seconds, 0)
