"""Scores of one measure: by condition, by group, and between groups at equal firing rate."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.evaluation.explaining.contexts import Booleans, Integers
from saefast.evaluation.explaining.estimates import (
    Estimate,
    between,
    combined,
    equal_rate_difference,
    mean_of,
)
from saefast.evaluation.explaining.sample import rate_bins
from saefast.evaluation.intervals import Floats
from saefast.evaluation.scores import TRAINED, Score
from saefast.nulls.draws import mass_matched

NAME = "explain"
"""Name of the evaluation"""

SCRAMBLED = "scrambled"
"""Condition of the trained SAEs' sampled latents with firings moved within their contexts"""

DRAWS = 20
"""Number of mass-matched sets of random latents for each group"""

_NAN = float("nan")


class MeasureScores:
    """Scores of one measure.

    Args:
        measure: name of the measure.
        floor: value without information.
        ceiling: upper bound or best attainable value.
        least: smallest possible value.
        most: largest possible value.
        rivals: whether larger values are better, so that scores name the best rival.
        primary: whether this is the primary measure.
    """

    def __init__(
        self,
        measure: str,
        *,
        floor: float = _NAN,
        ceiling: float = _NAN,
        least: float = 0.0,
        most: float = 1.0,
        rivals: bool = True,
        primary: bool = False,
    ) -> None:
        self._rivals = rivals
        self.measure, self._primary = measure, primary
        self._floor, self._ceiling = floor, ceiling
        self._bounds = {"least": least, "most": most}
        self._widest = {"least": least - most, "most": most - least}

    def of_conditions(self, values: Mapping[str, Sequence[Floats]]) -> Iterator[Score]:
        """Yield overall scores, differences to the trained SAEs and scores of each SAE.

        Args:
            values: by condition, values [latents] of each of its SAEs.
        """
        estimates = {name: [mean_of(its) for its in each] for name, each in values.items()}
        means = {name: combined(each).value for name, each in estimates.items()}
        rivals = {
            name: mean
            for name, mean in means.items()
            if self._rivals and name not in (TRAINED, SCRAMBLED) and not np.isnan(mean)
        }
        for name, each in estimates.items():
            best = max((n for n in rivals if n != name), key=rivals.__getitem__, default="")
            score = partial(self._score, name, rival=best, rival_value=rivals.get(best, _NAN))
            yield score(each)
            if name != TRAINED and TRAINED in estimates:
                difference = between(estimates[TRAINED], each)
                yield self._difference(f"{TRAINED} - {name}", difference, "")
            if len(each) > 1:
                for number, its in enumerate(each):
                    yield score([its], seed=number)

    def of_groups(
        self,
        values: Sequence[Floats],
        groups: Sequence[Mapping[str, Booleans]],
        masses: Sequence[Tensor],
        seed: int,
    ) -> Iterator[Score]:
        """Yield scores of groups of latents, and of random latents of the same activation mass.

        Args:
            values: for each trained SAE, values [m]; NaN for latents that do not count.
            groups: for each SAE its groups {name: [m] bool}.
            masses: for each SAE the activation mass of its latents, [m].
            seed: seed of the random latents.
        """
        for name in groups[0]:
            masks = [its[name] for its in groups]
            each = [mean_of(its[mask]) for its, mask in zip(values, masks, strict=True)]
            yield self._score(TRAINED, each, group=name)
            drawn = [
                _drawn(its, mask, mass, seed)
                for its, mask, mass in zip(values, masks, masses, strict=True)
            ]
            yield self._score(TRAINED, drawn, group=f"{name}:mass")

    def of_samples(self, values: Mapping[str, Sequence[Floats]]) -> Iterator[Score]:
        """Yield scores of samples of groups that fire equally often, and their differences.

        Args:
            values: by group, values [latents] of each trained SAE.
        """
        estimates = {name: [mean_of(its) for its in each] for name, each in values.items()}
        for name, each in estimates.items():
            yield self._score(TRAINED, each, group=name)
        for first, second in combinations(estimates, 2):
            difference = between(estimates[second], estimates[first])
            yield self._difference(TRAINED, difference, _apart(second, first))

    def at_equal_rates(
        self,
        values: Sequence[Floats],
        groups: Sequence[Mapping[str, Booleans]],
        fired: Sequence[Integers],
        edges: Integers,
    ) -> Iterator[Score]:
        """Yield differences between groups among latents that fire equally often.

        Args:
            values: for each trained SAE, values [m]; NaN for latents that do not count.
            groups: for each SAE its groups {name: [m] bool}.
            fired: for each SAE the number of rows on which each latent fires, [m].
            edges: edges between bins of firing rate.
        """
        for first, second in combinations(groups[0], 2):
            each = []
            for its, named, counts in zip(values, groups, fired, strict=True):
                bins = rate_bins(counts, edges)
                a, b = named[second], named[first]
                each.append(equal_rate_difference(its[a], its[b], bins[a], bins[b]))
            yield self._difference(TRAINED, each, _apart(second, first))

    def _difference(self, condition: str, each: Sequence[Estimate], group: str) -> Score:
        return Score(
            evaluation=NAME,
            measure=self.measure,
            condition=condition,
            group=group,
            **combined(each, **self._widest)._asdict(),
            n=sum(its.n for its in each),
            floor=0.0,
        )

    def _score(
        self,
        condition: str,
        each: Sequence[Estimate],
        *,
        group: str = "",
        seed: int | None = None,
        rival: str = "",
        rival_value: float = _NAN,
    ) -> Score:
        return Score(
            evaluation=NAME,
            measure=self.measure,
            condition=condition,
            group=group,
            seed=seed,
            **combined(each, **self._bounds)._asdict(),
            n=sum(its.n for its in each),
            floor=self._floor,
            ceiling=self._ceiling,
            rival=rival,
            rival_value=rival_value,
            primary=self._primary,
        )


def _drawn(values: Floats, mask: Booleans, mass: Tensor, seed: int) -> Estimate:
    """Return the mean over mass-matched random sets of the mean of their values."""
    chosen = torch.from_numpy(mask)
    sets = [mass_matched(chosen, mass, seed, draw).numpy() for draw in range(DRAWS)]
    means: NDArray[np.float64] = np.array([mean_of(values[each]).value for each in sets])
    known = means[~np.isnan(means)]
    if not len(known):
        return Estimate(_NAN, _NAN, 0)
    size = round(float(np.mean([each.sum() for each in sets])))
    return Estimate(float(known.mean()), float(known.std(ddof=1)), size)


def _apart(second: str, first: str) -> str:
    return f"{second} - {first} at equal firing rate"
