"""Results of steering as measures, columns of features and notes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from saefast.evaluation.conditions import DIFFMEAN
from saefast.evaluation.intervals import Floats
from saefast.evaluation.scores import TRAINED
from saefast.evaluation.steering.runs import (
    LATENT,
    MISMATCHED,
    Compared,
    Items,
    Settings,
    Written,
)
from saefast.evaluation.steering.scores import Measure

CLOSE = 0.45
"""Minimum cosine at which arXiv:2603.04198 counts a text as close to an explanation"""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Texts after several openers, for every item and each of several ways to steer."""

    steered: Sequence[Compared]
    """for each opener, the steered texts [items * ways]"""
    unsteered: Sequence[Compared]
    """for each opener, the second unsteered text compared for each of [items]"""
    divergence: Sequence[Tensor]
    """for each opener, [items * ways]; see `Written.divergence`"""
    ways: int
    """number of ways to steer: directions or strengths"""
    settings: Settings

    @staticmethod
    def of(written: Sequence[Written], ways: int, settings: Settings) -> "Trials":
        """Collect the texts of several openers."""
        return Trials(
            steered=[each.steered for each in written],
            unsteered=[each.unsteered for each in written],
            divergence=[each.divergence for each in written],
            ways=ways,
            settings=settings,
        )

    def success(self, outcome: str) -> Floats:
        """Return the share of openers after which steering succeeds, [items, ways]."""
        return self._mean([each.success(self.settings)[outcome] for each in self.steered])

    def gain(self, outcome: str) -> Floats:
        """Return the mean gain, [items, ways]; the gain of a text that is not fluent is 0."""
        gains = []
        for each in self.steered:
            fluent = each.loss < self.settings.most_loss
            gain = each.gain[outcome]
            gains.append(torch.where(fluent | gain.isnan(), gain, 0.0))
        return self._mean(gains)

    def close(self, outcome: str) -> Floats:
        """Return the share of openers after which the value is at least 0.45, [items, ways]."""
        values = [each.value[outcome] for each in self.steered]
        return self._mean([(each >= CLOSE).double().where(~each.isnan(), each) for each in values])

    def loss(self) -> Floats:
        """Return the mean rise of the loss [items, ways]."""
        return self._mean([each.loss for each in self.steered])

    def bigrams(self) -> Floats:
        """Return the mean share of distinct bigrams [items, ways]."""
        return self._mean([each.bigrams for each in self.steered])

    def kl(self) -> Floats:
        """Return the mean divergence of the next token's distribution [items, ways]."""
        return self._mean(self.divergence)

    def by_chance(self, outcome: str) -> Floats:
        """Return the share of openers after which the second unsteered text succeeds, [items]."""
        success = [each.success(self.settings)[outcome] for each in self.unsteered]
        return torch.stack(success).mean(0).numpy()

    def unsteered_loss(self) -> float:
        """Return the mean rise of the loss of the second unsteered text over openers."""
        return float(torch.stack([each.loss.mean() for each in self.unsteered]).mean())

    def unsteered_bigrams(self) -> float:
        """Return the mean share of distinct bigrams of the second unsteered text over openers."""
        return float(torch.stack([each.bigrams.mean() for each in self.unsteered]).mean())

    def _mean(self, of_openers: Sequence[Tensor]) -> Floats:
        mean: Floats = torch.stack(list(of_openers)).mean(0).view(-1, self.ways).numpy()
        return mean


@dataclass(frozen=True, kw_only=True)
class Results:
    """All measurements of one run of the evaluation."""

    items: Items
    outcomes: tuple[str, ...]
    primary: str
    strengths: tuple[float, ...]
    best: Tensor
    """[items] int64 index of the chosen strength"""
    choosing: Trials | None
    """texts with a way for each strength; None if there is one strength"""
    reported: Trials
    """texts with a way for each of `directions`"""
    directions: tuple[str, ...]
    input_score: Floats
    """[items] see `token_scores`; NaN where unknown"""
    output_score: Floats
    """[items] see `token_scores`; NaN where unknown"""

    def columns(self, sae: int, m: int) -> Mapping[str, Tensor]:
        """Return columns [m] of features.parquet for a trained SAE; NaN for latents not sampled."""
        success = self.reported.success(self.primary)
        control = np.full(len(self.items), np.nan)
        if MISMATCHED in self.directions:
            control = success[:, self.directions.index(MISMATCHED)]
        chosen = self.items.sample.of(TRAINED, sae)
        latents = torch.from_numpy(self.items.sample.latent[chosen])
        columns = {}
        for name, values in (
            ("steer_success", success[:, 0]),
            ("steer_success_control", control),
            ("steer_strength", np.array(self.strengths)[self.best.numpy()]),
            ("output_score", self.output_score),
            ("input_score", self.input_score),
        ):
            column = torch.full((m,), torch.nan, dtype=torch.float64)
            column[latents] = torch.from_numpy(np.asarray(values, dtype=np.float64)[chosen])
            columns[name] = column
        return columns

    def notes(self) -> Iterator[str]:
        """Yield sentences on the samples, on missing scores and on the choice of strengths."""
        sample = self.items.sample
        for name, place, latents in self.items.parts:
            alive = latents.sae.m - latents.silent
            yield (
                f"steer: {len(latents)} of {alive} latents that fire, of SAE {place} ({name}); "
                f"{latents.silent} never fire and cannot be steered with"
            )
        unknown = np.isnan(self.reported.gain(self.primary)[:, 0])
        for name in dict.fromkeys(sample.condition.tolist()):
            chosen = sample.of(name)
            if unknown[chosen].any():
                yield (
                    f"steer: the outcome {self.primary!r} is not defined for "
                    f"{int(unknown[chosen].sum())} of {int(chosen.sum())} latents of {name}, which "
                    f"have no score for it"
                )
        if self.choosing is not None:
            counts = torch.bincount(self.best, minlength=len(self.strengths)).tolist()
            chosen_by = ", ".join(
                f"{strength:g} for {count}"
                for strength, count in zip(self.strengths, counts, strict=True)
            )
            yield f"steer: strengths chosen on the other half of the openers: {chosen_by} latents"


def measures(results: Results) -> Iterator[Measure]:
    """Yield the measures of a run, the primary one first."""
    reported = results.reported
    order = [results.primary, *(name for name in results.outcomes if name != results.primary)]
    for name in order:
        primary = name == results.primary
        if MISMATCHED in results.directions:
            success = reported.success(name)
            above = success[:, 0] - success[:, results.directions.index(MISMATCHED)]
            yield Measure(
                name=f"success by {name} above mismatched",
                values=above,
                floor=0.0,
                lowest=-1.0,
                ceiling=1.0,
                primary=primary,
            )
            primary = False
        yield from _spread(
            results,
            f"success by {name}",
            partial(Trials.success, outcome=name),
            floor=reported.by_chance(name),
            lowest=0.0,
            ceiling=1.0,
            primary=primary,
            compared=True,
        )
        gain = partial(Trials.gain, outcome=name)
        yield from _spread(results, f"gain by {name}", gain, floor=0.0, compared=True)
        if name == "embedding":
            close = partial(Trials.close, outcome=name)
            yield from _spread(results, f"cosine of at least {CLOSE}", close, compared=True)
    for measure, of, floor in (
        ("rise of the loss", Trials.loss, reported.unsteered_loss()),
        ("distinct bigrams", Trials.bigrams, reported.unsteered_bigrams()),
        ("divergence", Trials.kl, 0.0),
    ):
        yield from _spread(results, measure, of, floor=floor)
    share = partial(Measure, floor=0.0, lowest=0.0, ceiling=1.0)
    yield share(name="output score", values=results.output_score)
    yield share(name="input score", values=results.input_score)


def _spread(
    results: Results,
    name: str,
    of: Callable[[Trials], Floats],
    *,
    floor: Floats | float = np.nan,
    lowest: float = np.nan,
    ceiling: float = np.nan,
    primary: bool = False,
    compared: bool = False,
) -> Iterator[Measure]:
    """Yield a measure along the latents, then along each control, then at each strength.

    Strengths are compared on the openers of the choice. With `compared`, controls are rivals,
    except the difference of means, which is not trivial.
    """
    values = of(results.reported)
    along = {f"along {way}": values[:, place] for place, way in enumerate(results.directions)}
    del along[f"along {LATENT}"]
    trivial = {name: its for name, its in along.items() if name != f"along {DIFFMEAN}"}
    yield Measure(
        name=name,
        values=values[:, 0],
        rivals=trivial if compared else {},
        floor=floor,
        lowest=lowest,
        ceiling=ceiling,
        primary=primary,
    )
    for task, its in along.items():
        yield Measure(name=name, task=task, values=its, floor=floor, lowest=lowest, ceiling=ceiling)
    if results.choosing is not None:
        curve = of(results.choosing)
        for place, strength in enumerate(results.strengths):
            yield Measure(name=name, task=f"strength {strength:g}", values=curve[:, place])
