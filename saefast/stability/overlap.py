"""Overlap of two dictionaries by all common measures, each with its null."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Unpack

import torch

from saefast import checks
from saefast.dictionary import Features, as_dictionaries
from saefast.disk.tables import table_of
from saefast.match.features import SearchOptions, match_features
from saefast.match.result import Matches
from saefast.progress import tracked
from saefast.stability.overlap_measures import Counting, Measure, View
from saefast.stability.result import CURVE
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa

SIGNS = ("signed", "absolute")
KINDS = ("nearest", "one_to_one")


class Key(NamedTuple):
    """Identification of a matching between two dictionaries a and b."""

    match: str
    """one of `KINDS`"""
    side: str
    """"decoder" or "encoder", rows that are matched"""
    sign: str
    """one of `SIGNS`"""
    turned: bool
    """whether the features of b are matched with those of a, instead of the reverse"""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Measures of the features that two dictionaries share."""

    measures: tuple[Measure, ...]
    """all measures"""
    alive: tuple[int, int]
    """numbers of alive features of a and of b"""
    dead: tuple[int, int]
    """numbers of dead features of a and of b, which are not matched"""
    matches: dict[Key, Matches] = field(repr=False)
    """matchings that the measures were computed from"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a pyarrow table with a row for each measure."""
        return table_of([vars(measure) for measure in self.measures])

    def select(self, name: str, **where: str | float | None) -> list[Measure]:
        """Return all measures with a name and given fields, such as the curve of "shared".

        Args:
            name: name of the measure; see `Measure`.
            where: values of further fields of `Measure`.

        Returns:
            The measures, in the order of `measures`.
        """
        where["name"] = name
        return [
            measure
            for measure in self.measures
            if all(getattr(measure, key) == wanted for key, wanted in where.items())
        ]

    def find(self, name: str, **where: str | float | None) -> Measure:
        """Return the only measure with a name and given fields, such as side="both".

        Args:
            name: name of the measure; see `Measure`.
            where: values of further fields of `Measure`.

        Returns:
            The measure.

        Raises:
            ValueError: no measure or several measures have these fields.
        """
        checks.one_of("name", name, tuple(dict.fromkeys(each.name for each in self.measures)))
        found = self.select(name, **where)
        if len(found) != 1:
            raise ValueError(
                f"where must select one measure {name!r}, but {where} selects {len(found)}; its "
                f"fields are those of Measure, such as match, side, of and threshold"
            )
        return found[0]


def measure_overlap(
    a: Features,
    b: Features,
    *,
    thresholds: Sequence[float] = CURVE,
    match: Sequence[str] = KINDS,
    signs: Sequence[str] = SIGNS,
    matches: Mapping[Key, Matches] | None = None,
    progress: bool = True,
    **options: Unpack[SearchOptions],
) -> Overlap:
    """Measure the overlap of two dictionaries: shared features, equal partners, MMCS, PW-MCC.

    Args:
        a: first dictionary: a tensor [m, d] such as `W_dec`, an SAE or a `Dictionary`. Measures of
            encoders require that both dictionaries have encoder rows.
        b: second dictionary, of the same width: a tensor [m2, d], an SAE or a `Dictionary`.
        thresholds: cosines from which features count as shared.
        match: "nearest", "one_to_one" or both; with "nearest" features may share a partner,
            "one_to_one" takes longer.
        signs: "signed", "absolute" or both; each requires matchings of its own.
        matches: matchings to reuse: `Overlap.matches` of an earlier call, or a part of it.
        progress: whether to show progress bars on stderr.
        options: further options of `match_features`.

    Returns:
        The measures, each for a, b and both, with their nulls.
    """
    if not isinstance(thresholds, Iterable):
        raise TypeError(
            f"thresholds must be a sequence of numbers such as [0.7], got {thresholds!r}"
        )
    for name, given, choices in (("match", match, KINDS), ("signs", signs, SIGNS)):
        if isinstance(given, str):
            raise TypeError(f"{name} must be a sequence of str such as [{given!r}], got {given!r}")
        for one in given:
            checks.one_of(name, one, choices)
    for threshold in thresholds:
        checks.at_least("thresholds", threshold, 0)
    pair = as_dictionaries([a, b], 2)
    with_encoder = all(dictionary.W_enc is not None for dictionary in pair)
    sides = ("decoder", "encoder") if with_encoder else ("decoder",)
    keys = [
        Key(one, side, sign, turned)
        for sign in signs
        for side in sides
        for one in match
        for turned in ((False, True) if one == "nearest" else (False,))
    ]
    found = dict(matches or {})
    missing = [key for key in keys if key not in found]
    for key in tracked(missing, "overlap", unit="matchings", progress=progress):
        first, second = reversed(pair) if key.turned else pair
        found[key] = match_features(
            first,
            second,
            one_to_one=key.match == "one_to_one",
            side=key.side,
            absolute=key.sign == "absolute",
            progress=progress,
            **options,
        )
    alive = [dictionary.alive for dictionary in pair]
    width = pair[0].W_dec.shape[1]
    measures = [
        measure
        for sign in signs
        for one in match
        for measure in Counting(
            alive, width, one, sign, _views(found, one, sign, sides, pair[1].m)
        ).measures(thresholds)
    ]
    counts = [int(living.sum()) for living in alive]
    dead = [dictionary.m - count for dictionary, count in zip(pair, counts, strict=True)]
    return Overlap(
        measures=tuple(measures),
        alive=(counts[0], counts[1]),
        dead=(dead[0], dead[1]),
        matches=found,
    )


def _views(
    found: Mapping[Key, Matches], match: str, sign: str, sides: Sequence[str], size: int
) -> dict[tuple[str, int], View]:
    """Return partners by side and dictionary: 0 for the features of a in b, 1 for b in a."""
    views = {}
    for side in sides:
        forward = _view(found[Key(match, side, sign, False)])
        views[side, 0] = forward
        if match == "nearest":
            views[side, 1] = _view(found[Key(match, side, sign, True)])
        else:
            views[side, 1] = _turned(forward, size)
    return views


def _view(matches: Matches) -> View:
    return View(matches.partner, matches.similarity, matches.mutual)


def _turned(pairs: View, size: int) -> View:
    """Invert a one-to-one matching."""
    row = (pairs.partner >= 0).nonzero()[:, 0]
    column = pairs.partner[row]
    return View(
        torch.full((size,), -1).index_copy(0, column, row),
        pairs.similarity.new_zeros(size).index_copy(0, column, pairs.similarity[row]),
        torch.zeros(size, dtype=torch.bool).index_copy(0, column, pairs.mutual[row]),
    )
