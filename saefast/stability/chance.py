"""Shares of random directions that have a match, for each kind of match."""

from collections.abc import Sequence
from functools import lru_cache

from saefast.nulls.cosines import BestOfRandom, PairsOfRandom
from saefast.stability.result import StabilityRule


def matched_by_chance(
    match: str, threshold: float, own: int, other: int, width: int, absolute: bool
) -> float:
    """Compute the expected share of random directions that have a match.

    Args:
        match: one of `stability.inputs.MATCHES`.
        threshold: minimum similarity of a match.
        own: number of directions whose matches are counted.
        other: number of directions that they are matched with.
        width: width of the directions.
        absolute: whether opposite directions count as similar.

    Returns:
        Share of the `own` directions.
    """
    if match == "nearest":
        return float(BestOfRandom(other, width, absolute).reaches(threshold))
    if match == "one_to_one":
        pairs = _pairs(*sorted((own, other)), width, absolute)
        return min(own, other) / max(own, 1) * float(pairs.reaches(threshold))
    # A pair is mutual if it is the largest entry of its row and column, of which `other` are in the
    # row. Each of them is the largest with equal probability, whatever the largest is.
    cross = max(own + other - 1, 1)
    largest = BestOfRandom(cross, width, absolute)
    return other / cross * float(largest.reaches(threshold)) if own else 0.0


def found_by_chance(
    rule: StabilityRule, thresholds: Sequence[float], alive: Sequence[int]
) -> list[float]:
    """Compute the expected share of random directions that a rule finds in each dictionary.

    Directions of decoders and encoders are independent.

    Args:
        rule: rule by which matches are counted.
        thresholds: minimum similarity of a match in each dictionary.
        alive: number of alive features of each dictionary.

    Returns:
        Shares of as many random directions as the other dictionaries have on average.
    """
    shares = []
    for other, threshold in zip(alive, thresholds, strict=True):
        own = round((sum(alive) - other) / (len(alive) - 1))
        share = matched_by_chance(rule.match, threshold, own, other, rule.width, rule.absolute)
        if rule.side == "both":
            share *= share
        if rule.same_partner:
            share /= max(other, 1)
        shares.append(share)
    return shares


@lru_cache
def _pairs(few: int, many: int, width: int, absolute: bool) -> PairsOfRandom:
    return PairsOfRandom(few, many, width, absolute)
