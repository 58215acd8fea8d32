"""Measures of overlap of two dictionaries, computed from their matches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from saefast.nulls.cosines import BestOfRandom, PairsOfRandom
from saefast.stability.chance import matched_by_chance

_HIGH = 0.999


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Value of one measure of the overlap of two dictionaries, a and b."""

    name: str
    """name of the measure. shared: share of features whose similarity to their partner is at least
    `threshold`; mutual: share of features that are the nearest of their nearest feature;
    equal_partner: share of features with the same partner on both sides; mmcs: mean of the largest
    cosines; pw_mcc: sum of the cosines of one-to-one pairs divided by the number of features of the
    smaller dictionary"""
    match: str
    """kind of matching, "nearest" or "one_to_one" """
    side: str
    """rows that are compared: decoder; encoder; both, with any partner on each side; same, with the
    same partner on both sides"""
    sign: str
    """signed; or absolute, for which opposite directions count as similar"""
    of: str
    """dictionary whose features are counted: a, b, or both (the mean of the two)"""
    threshold: float | None
    """minimum similarity of shared features; None for other measures"""
    value: float
    """value among alive features; NaN if there are none"""
    of_all: float
    """value among all features, where dead features have no partner"""
    null: float
    """expected value of random directions, as many as are alive; directions of encoders are
    independent of those of decoders"""
    null_high: float | None
    """cosine that one in a thousand random features exceeds, for means of cosines; None for
    shares"""


class View(NamedTuple):
    """Partners of the features of one dictionary in the other, by one side."""

    partner: Tensor
    """[m] int64, index of the partner; -1 for none"""
    similarity: Tensor
    """[m] similarity to the partner; 0 without a partner"""
    mutual: Tensor
    """[m] bool, features that are the nearest of their nearest feature"""

    def reaching(self, threshold: float) -> Tensor:
        """Return a mask [m] of the features with a partner of at least this similarity."""
        return (self.partner >= 0) & (self.similarity >= threshold)


class Counting:
    """Computation of all measures of one kind of matching."""

    def __init__(
        self,
        alive: Sequence[Tensor],
        width: int,
        match: str,
        sign: str,
        views: Mapping[tuple[str, int], View],
    ) -> None:
        """Store the partners by side and dictionary: 0 for a, 1 for b."""
        self.match, self.sign, self.views, self.width = match, sign, views, width
        self.sides = tuple(dict.fromkeys(side for side, _ in views))
        self.alive = alive
        self.sizes = [len(living) for living in alive]
        self.counts = [int(living.sum()) for living in alive]
        absolute = sign == "absolute"
        self.best = [BestOfRandom(count, width, absolute) for count in self.counts]
        self.pairs = PairsOfRandom(self.counts[0], self.counts[1], width, absolute)

    def measures(self, thresholds: Sequence[float]) -> Iterator[Measure]:
        """Yield the measures of decoders, of encoders if present, and of both sides together."""
        yield from self._means()
        if self.match == "nearest":
            for side in self.sides:
                null = [self._by_chance(i, "mutual", -1.0) for i in (0, 1)]
                masks = [self.views[side, i].mutual for i in (0, 1)]
                yield from self._shares("mutual", side, None, masks, null)
        together = [self._equal_partner(i) for i in (0, 1)] if len(self.sides) == 2 else []
        if together:
            null = [self._paired(i) ** 2 * self._one_of(i) for i in (0, 1)]
            yield from self._shares("equal_partner", "both", None, together, null)
        for threshold in thresholds:
            chance = [self._by_chance(i, self.match, threshold) for i in (0, 1)]
            reaching = {key: view.reaching(threshold) for key, view in self.views.items()}
            for side in self.sides:
                masks = [reaching[side, i] for i in (0, 1)]
                yield from self._shares("shared", side, threshold, masks, chance)
            if together:
                masks = [reaching["decoder", i] & reaching["encoder", i] for i in (0, 1)]
                null = [p * p for p in chance]
                yield from self._shares("shared", "both", threshold, masks, null)
                masks = [mask & equal for mask, equal in zip(masks, together, strict=True)]
                null = [p * self._one_of(i) for i, p in enumerate(null)]
                yield from self._shares("shared", "same", threshold, masks, null)

    def _means(self) -> Iterator[Measure]:
        """Yield MMCS or PW-MCC of each side."""
        for side in self.sides:
            sums = [float(self.views[side, i].similarity.double().sum()) for i in (0, 1)]
            if self.match == "one_to_one":
                value, of_all = (_over(sums[0], min(sizes)) for sizes in (self.counts, self.sizes))
                yield Measure(
                    name="pw_mcc",
                    match=self.match,
                    side=side,
                    sign=self.sign,
                    of="both",
                    threshold=None,
                    value=value,
                    of_all=of_all,
                    null=self.pairs.mean(),
                    null_high=self.pairs.quantile(_HIGH),
                )
                continue
            values = [_over(total, count) for total, count in zip(sums, self.counts, strict=True)]
            shares = [_over(total, size) for total, size in zip(sums, self.sizes, strict=True)]
            nulls = [self.best[1 - i].mean() for i in (0, 1)]
            highs = [self.best[1 - i].quantile(_HIGH) for i in (0, 1)]
            for of, value, of_all, mean, high in _each_and_both(values, shares, nulls, highs):
                yield Measure(
                    name="mmcs",
                    match=self.match,
                    side=side,
                    sign=self.sign,
                    of=of,
                    threshold=None,
                    value=value,
                    of_all=of_all,
                    null=mean,
                    null_high=high,
                )

    def _shares(
        self,
        name: str,
        side: str,
        threshold: float | None,
        masks: Sequence[Tensor],
        null: Sequence[float],
    ) -> Iterator[Measure]:
        hits = [int((mask & living).sum()) for mask, living in zip(masks, self.alive, strict=True)]
        values = [_over(hit, count) for hit, count in zip(hits, self.counts, strict=True)]
        shares = [_over(hit, size) for hit, size in zip(hits, self.sizes, strict=True)]
        for of, value, of_all, chance in _each_and_both(values, shares, null):
            yield Measure(
                name=name,
                match=self.match,
                side=side,
                sign=self.sign,
                of=of,
                threshold=threshold,
                value=value,
                of_all=of_all,
                null=chance,
                null_high=None,
            )

    def _equal_partner(self, i: int) -> Tensor:
        decoder, encoder = self.views["decoder", i], self.views["encoder", i]
        return (decoder.partner == encoder.partner) & (decoder.partner >= 0)

    def _paired(self, i: int) -> float:
        """Return the share of features that have a partner."""
        if self.match == "nearest":
            return float(self.counts[1 - i] > 0)
        return min(self.counts) / max(self.counts[i], 1)

    def _one_of(self, i: int) -> float:
        """Return the probability that a random partner is a given feature of the other."""
        return 1 / max(self.counts[1 - i], 1)

    def _by_chance(self, i: int, match: str, threshold: float) -> float:
        """Return the share of random features with a match of at least this similarity."""
        own, other = self.counts[i], self.counts[1 - i]
        return matched_by_chance(match, threshold, own, other, self.width, self.sign == "absolute")


def _over(total: float, count: int) -> float:
    return total / count if count else float("nan")


def _each_and_both(*numbers: Sequence[float]) -> Iterator[tuple[Any, ...]]:
    """Yield the numbers of a, of b, and the means of both."""
    for i, of in enumerate(("a", "b")):
        yield of, *(number[i] for number in numbers)
    yield "both", *(sum(number) / 2 for number in numbers)
