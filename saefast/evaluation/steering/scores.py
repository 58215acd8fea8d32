"""Scores with intervals from measures of steering with each latent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.evaluation.intervals import (
    DRAWS,
    NOWHERE,
    Floats,
    interval_of_difference,
    interval_of_draws,
    interval_of_equal_items,
    noise_of_draws,
)
from saefast.evaluation.scores import TRAINED, Score
from saefast.nulls.draws import mass_matched

NAME = "steer"
"""Name of the evaluation"""

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Origin of each item of an evaluation, a sampled latent."""

    condition: NDArray[np.str_]
    """[items] name of the condition"""
    sae: NDArray[np.int64]
    """[items] position of its SAE in the condition"""
    latent: NDArray[np.int64]
    """[items] index of the latent in the SAE"""
    stratum: NDArray[np.int64]
    """[items] stratum of the sample, distinct for different SAEs"""
    weight: Floats
    """[items] number of latents of the stratum that each represents"""

    def of(self, condition: str, sae: int | None = None) -> NDArray[np.bool_]:
        """Return the mask [items] of a condition, or of one of its SAEs."""
        chosen: NDArray[np.bool_] = self.condition == condition
        return chosen if sae is None else chosen & (self.sae == sae)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Values of one measure for each item."""

    name: str
    values: Floats
    """[items] values; NaN where unknown"""
    task: str = ""
    """"" for the direction of the latent itself at the chosen strength"""
    rivals: Mapping[str, Floats] = field(default_factory=dict)
    floor: Floats | float = _NAN
    lowest: float = _NAN
    """smallest possible value of an item; NaN if unbounded or unknown"""
    ceiling: float = _NAN
    primary: bool = False


def scores_of(
    measure: Measure,
    sample: Sample,
    groups: Sequence[Mapping[str, Tensor]],
    mass: Sequence[Tensor] | None,
    draws: int,
    seed: int,
) -> list[Score]:
    """Build the scores of one measure: of each condition, SAE and group, and differences.

    Args:
        measure: measure with its values.
        sample: origin of the items.
        groups: for each trained SAE its groups {name: [m] bool}.
        mass: for each trained SAE the activation mass [m]; None: groups are not compared with
            random latents.
        draws: number of random sets for each group.
        seed: seed of bootstraps and random sets.

    Returns:
        The scores of the measure.
    """
    scores: list[Score] = []
    whole: dict[str, Floats] = {}
    for place, condition in enumerate(dict.fromkeys(sample.condition.tolist())):
        chosen, draw = sample.of(condition), (seed, place)  # conditions are drawn independently
        score, whole[condition] = _score(measure, sample, chosen, condition, draw)
        scores.append(score)
        if condition != TRAINED and not measure.task:
            scores.append(_difference(scores[0], score, whole[TRAINED], whole[condition]))
        if measure.task:
            continue
        saes = np.unique(sample.sae[chosen]).tolist()
        if len(saes) > 1:
            for sae in saes:
                its, _ = _score(measure, sample, sample.of(condition, sae), condition, draw)
                scores.append(replace(its, seed=sae))
    if not measure.task:
        scores += _by_group(measure, sample, groups, mass, draws, seed)
    return scores


def noise_of(measure: Measure, sample: Sample, seed: int) -> dict[str, float]:
    """Estimate the noise of a measure of the trained SAEs from resamples of the latents.

    Args:
        measure: measure with its values.
        sample: origin of the items.
        seed: seed of the bootstrap.

    Returns:
        {name of the measure: noise}; empty if it cannot be estimated.
    """
    score, drawn = _score(measure, sample, sample.of(TRAINED), TRAINED, (seed, 0))
    return noise_of_draws(measure.name, drawn, score.interval)


def stratified_draws(
    values: Floats, stratum: NDArray[np.int64], weight: Floats, seed: Sequence[int]
) -> Floats:
    """Return bootstrap means [draws] of items, resampled within their strata.

    Resamples of n - 1 of n items have the variance of a mean (Rao and Wu 1988). Strata of a single
    item cannot be resampled; they are merged into one stratum, which overestimates their spread.

    Args:
        values: [n] values, none NaN.
        stratum: [n] stratum of each item.
        weight: [n] weight of each item.
        seed: numbers that seed the draws.
    """
    generator = np.random.default_rng(seed)
    _, place, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    collapsed = np.where(sizes[place] == 1, -1, place)
    total = np.zeros(DRAWS)
    for one in np.unique(collapsed):
        here = collapsed == one
        size, share = int(here.sum()), weight[here]
        counts = generator.multinomial(max(size - 1, 1), np.full(size, 1 / size), size=DRAWS)
        total += (counts @ (values[here] * share)) / (counts @ share) * share.sum()
    means: Floats = total / weight.sum()
    return means


def _score(
    measure: Measure,
    sample: Sample,
    chosen: NDArray[np.bool_],
    condition: str,
    seed: Sequence[int],
) -> tuple[Score, Floats]:
    """Return the score over the chosen items, and its bootstrap means."""
    known = chosen & ~np.isnan(measure.values)
    drawn = np.full(1, _NAN)
    interval = NOWHERE
    if known.any():
        stratum, weight = sample.stratum[known], sample.weight[known]
        drawn = stratified_draws(measure.values[known], stratum, weight, seed)
        interval = interval_of_draws(_mean(measure.values, sample.weight, known), drawn)
        if np.ptp(measure.values[known]) == 0:
            interval = interval_of_equal_items(
                interval.value, int(known.sum()), measure.lowest, measure.ceiling
            )
    rivals = {name: _mean(values, sample.weight, known) for name, values in measure.rivals.items()}
    rivals = {name: value for name, value in rivals.items() if not np.isnan(value)}
    best = max(rivals, key=rivals.__getitem__, default="")
    floor = np.broadcast_to(measure.floor, len(chosen))
    score = Score(
        evaluation=NAME,
        measure=measure.name,
        condition=condition,
        **interval._asdict(),
        n=int(known.sum()),
        task=measure.task,
        floor=_mean(floor, sample.weight, known),
        rival=best,
        rival_value=rivals.get(best, _NAN),
        ceiling=measure.ceiling,
        primary=measure.primary,
    )
    return score, drawn


def _difference(trained: Score, other: Score, first: Floats, second: Floats) -> Score:
    """Return the difference of the trained SAEs' score to the score of a condition, unpaired."""
    interval = NOWHERE
    if len(first) == len(second) > 1:
        interval = interval_of_difference(trained.interval, other.interval, first - second)
    return replace(other.difference_to_trained(interval), n=min(trained.n, other.n))


def _by_group(
    measure: Measure,
    sample: Sample,
    groups: Sequence[Mapping[str, Tensor]],
    mass: Sequence[Tensor] | None,
    draws: int,
    seed: int,
) -> Iterator[Score]:
    """Yield the scores of groups of trained latents, each followed by random latents' score."""
    trained = sample.of(TRAINED)
    for name in dict.fromkeys(name for named in groups for name in named):
        inside = trained & _members(sample, [named.get(name) for named in groups])
        if not inside.any():
            continue
        score, _ = _score(measure, sample, inside, TRAINED, (seed, 0))
        yield replace(score, group=name)
        if mass is None:
            continue
        means, sizes = [], []
        for draw in range(draws):
            random = np.zeros_like(inside)
            for sae, its_mass in enumerate(mass):
                place = np.flatnonzero(sample.of(TRAINED, sae))
                its = its_mass.double().cpu()[torch.from_numpy(sample.latent[place])]
                drawn = mass_matched(torch.from_numpy(inside[place]), its, seed, draw)
                random[place] = drawn.numpy()
            known = random & ~np.isnan(measure.values)
            means.append(_mean(measure.values, sample.weight, known))
            sizes.append(int(known.sum()))
        if not np.isnan(means).all():
            interval = interval_of_draws(float(np.nanmean(means)), np.array(means))
            yield replace(
                score,
                **interval._asdict(),
                group=f"{name}:mass",
                n=round(float(np.mean(sizes))),
                rival="",
                rival_value=_NAN,
            )


def _members(sample: Sample, masks: Sequence[Tensor | None]) -> NDArray[np.bool_]:
    """Return the mask [items] of trained latents in a group."""
    inside = np.zeros(len(sample.sae), dtype=bool)
    for sae, mask in enumerate(masks):
        place = sample.of(TRAINED, sae)
        if mask is not None:
            inside[place] = mask.cpu().numpy()[sample.latent[place]]
    return inside


def _mean(values: Floats, weight: Floats, chosen: NDArray[np.bool_]) -> float:
    chosen = chosen & ~np.isnan(values)
    return float(np.average(values[chosen], weights=weight[chosen])) if chosen.any() else _NAN
