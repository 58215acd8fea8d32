"""Stability scores: the probability that an SAE of another seed has the same feature."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Unpack

import torch
from torch import Tensor

from saefast.dictionary import Features, as_dictionaries
from saefast.match.all_pairs import match_all
from saefast.match.features import SearchOptions
from saefast.nulls.beta import beta_quantile
from saefast.nulls.cosines import BestOfRandom
from saefast.stability.chance import found_by_chance
from saefast.stability.groups import check_cuts, is_stable, is_unstable
from saefast.stability.inputs import (
    PairMatches,
    check_arguments,
    check_pairs,
    check_threshold,
    given_matches,
    with_alive,
)
from saefast.stability.result import CURVE, Stability, StabilityRule

_NULL_SHARE = 0.999


def score_stability(
    dictionaries: Sequence[Features],
    *,
    threshold: float | Literal["null"] = 0.7,
    match: str = "nearest",
    side: str = "decoder",
    absolute: bool = False,
    same_partner: bool = False,
    matches: PairMatches | tuple[PairMatches, PairMatches] | None = None,
    alive: Sequence[Tensor] | None = None,
    confidence: float = 0.95,
    progress: bool = True,
    **options: Unpack[SearchOptions],
) -> Stability:
    """Estimate for every feature the probability that the dictionary of another seed has it too.

    A feature counts as found in another dictionary if its match there is similar enough. The
    stability score is the share of the other dictionaries in which the feature is found.

    Args:
        dictionaries: two or more dictionaries of one width and different seeds: tensors [m, d] such
            as `W_dec`, SAEs or `Dictionary` objects. Their sizes may differ. Features with a known
            `firing_rate` of zero are dead and are ignored.
        threshold: minimum similarity of a match. "null" uses the similarity that only one in a
            thousand random directions reaches, given the width and the number of alive features of
            the other dictionary; this null applies to cosines, not to correlations of activations.
        match: "nearest" uses the most similar feature, which may be the match of several features;
            "mutual" requires that each is the nearest of the other; "one_to_one" uses the matching
            of greatest total similarity.
        side: rows to compare: "decoder" or "encoder"; with "both" the sides are matched separately,
            and the smaller of the two cosines counts.
        absolute: whether opposite directions count as similar.
        same_partner: whether, with side="both", both sides must have the same partner.
        matches: result of `match_all` or `activation_matches` for these dictionaries, which is used
            instead of matching; with side="both" a pair of them, of decoders and encoders.
        alive: [m] bool for each dictionary, in place of `Dictionary.alive`.
        confidence: confidence level of the intervals.
        progress: whether to show a progress bar on stderr while matching.
        options: further options of `match_features`.

    Returns:
        Scores with Jeffreys intervals: quantiles of Beta(1/2 + hits, 1/2 + misses), extended to 0
        without hits and to 1 without misses, so that an interval always contains the score.
    """
    check_arguments(threshold, match, side, same_partner, confidence)
    each = as_dictionaries(dictionaries, 2)
    if alive is not None:
        each = with_alive(each, alive)
    living = [dictionary.alive for dictionary in each]
    if matches is None:
        sides = ("decoder", "encoder") if side == "both" else (side,)
        found: list[PairMatches] = [
            match_all(
                each,
                progress=progress,
                side=one,
                one_to_one=match == "one_to_one",
                absolute=absolute,
                **options,
            )
            for one in sides
        ]
    else:
        if options:
            raise TypeError(
                f"{', '.join(options)} must not be given together with matches, which they do not "
                f"affect"
            )
        found = given_matches(matches, side)
        for pairs in found:
            check_pairs(pairs, each, living, match)
    similarity, partner = _partners(found, living, match, same_partner)
    width = each[0].W_dec.shape[1]
    rule = StabilityRule(
        threshold=threshold,
        match=match,
        side=side,
        absolute=absolute,
        same_partner=same_partner,
        confidence=confidence,
        width=width,
    )
    return _scored(similarity, partner, living, rule)


def at_threshold(stability: Stability, threshold: float | Literal["null"]) -> Stability:
    """Compute the scores at another threshold from the same matches, without matching again.

    Args:
        stability: result of `score_stability`.
        threshold: minimum similarity of a match, or "null", as for `score_stability`.

    Returns:
        The scores at that threshold.
    """
    check_threshold(threshold)
    rule = replace(stability.rule, threshold=threshold)
    return _scored(stability.similarity, stability.partner, stability.alive, rule)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Summary of the scores of all alive features at one threshold."""

    threshold: float
    """minimum similarity of a match"""
    score: float
    """mean score"""
    stable: float
    """share of features with a score of at least `stable`"""
    unstable: float
    """share of features with a score of at most `unstable`"""
    chance: float
    """expected mean score of random directions"""


def stability_curve(
    stability: Stability,
    thresholds: Sequence[float] = CURVE,
    *,
    stable: float = 0.8,
    unstable: float = 0.2,
) -> list[CurvePoint]:
    """Compute the mean score and the stable and unstable shares at each threshold.

    The curve shows how much a result depends on the choice of a threshold.

    Args:
        stability: result of `score_stability`.
        thresholds: thresholds of the similarity of matches, not of the score.
        stable: minimum score of a stable feature.
        unstable: maximum score of an unstable feature.

    Returns:
        A `CurvePoint` for each threshold.
    """
    check_cuts(stable, unstable)
    weights = torch.tensor([float(alive.sum()) for alive in stability.alive]).double()
    others = len(weights) - 1
    points = []
    for threshold in thresholds:
        at = at_threshold(stability, threshold)
        score = torch.cat([s[alive] for s, alive in zip(at.score, at.alive, strict=True)])
        by_chance = (at.chance.sum() - at.chance) / others
        points.append(
            CurvePoint(
                threshold=threshold,
                score=float(score.mean()),
                stable=float(is_stable(score, stable).double().mean()),
                unstable=float(is_unstable(score, unstable).double().mean()),
                chance=float((weights * by_chance).sum() / weights.sum()),
            )
        )
    return points


def _scored(
    similarity: Sequence[Tensor],
    partner: Sequence[Tensor],
    alive: Sequence[Tensor],
    rule: StabilityRule,
) -> Stability:
    """Compute the scores from the matches by a rule."""
    counts = [int(living.sum()) for living in alive]
    if isinstance(rule.threshold, str):
        nulls = [BestOfRandom(count, rule.width, rule.absolute) for count in counts]
        thresholds = [null.quantile(_NULL_SHARE) for null in nulls]
    else:
        thresholds = [rule.threshold] * len(counts)
    least = torch.tensor(thresholds, dtype=torch.float64)
    others = len(alive) - 1
    low, high = _jeffreys(others, rule.confidence)
    hit = [_reaching(there, least) for there in similarity]
    hits = [there.sum(1) for there in hit]

    def of_living(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(value * living for value, living in zip(values, alive, strict=True))

    return Stability(
        score=of_living([count.double() / others for count in hits]),
        support=of_living([count + 1 for count in hits]),
        low=of_living([low[count] for count in hits]),
        high=of_living([high[count] for count in hits]),
        soft=of_living([there.sum(1, dtype=torch.float64) / others for there in similarity]),
        alive=tuple(alive),
        similarity=tuple(similarity),
        partner=tuple(partner),
        hit=tuple(hit),
        thresholds=least,
        chance=torch.tensor(found_by_chance(rule, thresholds, counts), dtype=torch.float64),
        rule=rule,
    )


def _reaching(similarity: Tensor, least: Tensor) -> Tensor:
    """Return a mask [m, s] of the matches; a similarity of 0 is none, at any threshold."""
    return (similarity >= least.to(similarity.dtype)) & (similarity > 0)


@lru_cache
def _jeffreys(trials: int, confidence: float) -> tuple[Tensor, Tensor]:
    """Return the lower and upper ends [trials + 1] of the interval for each number of hits."""
    hits = torch.arange(trials + 1, dtype=torch.float64)
    a, b = (hits + 0.5).numpy(), (trials - hits + 0.5).numpy()
    low, high = (
        torch.from_numpy(beta_quantile(q, a, b))
        for q in ((1 - confidence) / 2, (1 + confidence) / 2)
    )
    low[0], high[-1] = 0, 1
    return low, high


def _partners(
    found: Sequence[PairMatches], alive: Sequence[Tensor], match: str, same_partner: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return similarities [m, s] and partners on the first side [m, s] for each dictionary."""
    similarity, partner = [], []
    for s, living in enumerate(alive):
        # They are written and summed by columns, so columns are contiguous in memory.
        shape = len(alive), len(living)
        similar, names = torch.zeros(shape).T, torch.full(shape, -1).T
        for t in range(len(alive)):
            if s == t:
                continue
            pairs = [matches[s, t] for matches in found]
            counts = living.clone()
            for one in pairs:
                counts &= (one.partner >= 0) & (one.mutual if match == "mutual" else True)
            if same_partner:
                counts &= pairs[0].partner == pairs[-1].partner
            least = torch.stack([one.similarity for one in pairs]).amin(0)
            similar[:, t] = least.float() * counts
            names[:, t] = pairs[0].partner.where(counts, -1)
        similarity.append(similar)
        partner.append(names)
    return similarity, partner
