"""Scores of edits, with intervals by a bootstrap over entities and seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from saefast.evaluation.editing.one_attribute import (
    ALL,
    CHOSEN,
    NONE,
    OTHER_ERROR,
    RANDOM,
    Edited,
    Outcome,
    at,
    harmonic,
)
from saefast.evaluation.editing.pairs import TEMPLATES, Task
from saefast.evaluation.intervals import (
    DRAWS,
    Floats,
    Interval,
    interval_of_difference,
    interval_of_draws,
    interval_of_equal_items,
    noise_of_draws,
    two_way_interval,
)
from saefast.evaluation.resamples import resamples_of
from saefast.evaluation.scores import TRAINED, Score

NAME = "edit"
Measure = Callable[[Floats, Floats], Floats]
"""Function from cause and isolation, [draws] each, to values [draws]"""

H = "h"
MEASURES: dict[str, Measure] = {
    H: harmonic,
    "cause": lambda cause, _: cause,
    "isolation": lambda _, isolation: isolation,
    "disentangle": lambda cause, isolation: (cause + isolation) / 2,
}

_RIVALS = (NONE, ALL, RANDOM)
_FLOORS = {H: 0.0, "cause": 0.0, "isolation": 0.0, "disentangle": 0.5}
"""Values of both trivial edits, none and all, in the ideal case"""


class _Line(NamedTuple):
    """One edit under one condition."""

    condition: str
    values: Floats
    """[SAEs, tasks] values"""
    draws: Floats
    """[SAEs, tasks, draws] values of resampled entities"""
    overall: Floats
    """[draws] means over tasks and resampled SAEs"""
    rival: str
    rival_values: Floats
    """[SAEs, tasks] values of the rival"""


@dataclass(kw_only=True)
class Results:
    """All outcomes of an evaluation."""

    tasks: list[Task]
    edited: dict[str, list[list[Edited]]]
    """by condition, for each SAE and task"""
    whole: list[Outcome]
    """for each task, the interchange of all of h"""
    seed: int
    _counts: dict[str, Floats] = field(default_factory=dict)

    def scores(self, n: Sequence[int], groups: Sequence[str], with_error: bool) -> list[Score]:
        """Build the rows of all measures, the primary one first."""
        rows = [row for name in MEASURES for row in self._rows(name, name, CHOSEN, detailed=True)]
        rows += self._gained()
        other = "without the error" if with_error else "with the error"
        rows += self._rows(f"{H} {other}", H, OTHER_ERROR)
        rows += self._rows(f"{H} on {TEMPLATES}", H, TEMPLATES)
        for name in (H, "cause", "isolation"):
            for number in n:
                rows += self._rows(f"{name} {at(number)}", name, at(number))
        for name in (H, "cause", "isolation"):
            for group in groups:
                rows += self._rows(name, name, group, group=group, conditions=(TRAINED,))
        return (
            rows
            + self._plain(
                "latents", lambda its: float(its.latents), ALL, lambda its: float(len(its.scores))
            )
            + self._plain(
                "share of active latents",
                lambda its: its.active,
                RANDOM,
                lambda its: its.active_at_random,
            )
        )

    def noise(self) -> dict[str, float]:
        """Estimate the noise of the primary measure from resamples of the test entities.

        The choice of latents on training entities is not repeated, so this is a lower bound.

        Returns:
            The noise by measure, as from `noise_of_draws`.
        """
        line = self._line(TRAINED, H, CHOSEN)
        drawn = _mean(line.draws, (0, 1))
        interval = _interval(float(_mean(line.values)), drawn, self._entities())
        return noise_of_draws(H, drawn, interval)

    def _rows(
        self,
        measure: str,
        formula: str,
        edit: str,
        *,
        group: str = "",
        conditions: Sequence[str] | None = None,
        detailed: bool = False,
    ) -> list[Score]:
        """Return rows of one edit under all or given conditions; detailed by SAE and task."""
        rows = []
        lines = {
            name: self._line(name, formula, edit)
            for name in (self.edited if conditions is None else conditions)
            if all(edit in its.outcomes for line in self.edited[name] for its in line)
        }
        for condition, line in lines.items():
            row = partial(self._row, measure, formula, group, line)
            rows.append(row(float(_mean(line.values)), line.overall))
            if condition == TRAINED:
                trained = rows[-1]
            elif TRAINED in lines:
                drawn = lines[TRAINED].overall - line.overall
                lead = interval_of_difference(trained.interval, rows[-1].interval, drawn)
                rows.append(rows[-1].difference_to_trained(lead))
            if not detailed:
                continue
            for s, (values, draws) in enumerate(zip(line.values, line.draws, strict=True)):
                if len(line.values) > 1:
                    rows.append(row(float(_mean(values)), _mean(draws, 0), sae=s))
                for t in range(len(self.tasks)):
                    rows.append(row(float(values[t]), draws[t], sae=s, task=t))
        return rows

    def _row(
        self,
        measure: str,
        formula: str,
        group: str,
        line: "_Line",
        value: float,
        drawn: Floats,
        *,
        sae: int | None = None,
        task: int | None = None,
    ) -> Score:
        """Return one row over all SAEs and tasks, or for one of them."""
        saes = slice(None) if sae is None else slice(sae, sae + 1)
        tasks = slice(None) if task is None else slice(task, task + 1)
        ceilings = [
            float(MEASURES[formula](cause, np.ones_like(cause))[0])
            for cause, _ in (whole.rates() for whole in self.whole[tasks])
        ]
        n = self._entities(None if task is None else self.tasks[task].kind)
        return Score(
            evaluation=NAME,
            measure=measure,
            condition=line.condition,
            **_interval(value, drawn, n)._asdict(),
            n=n,
            task="" if task is None else self.tasks[task].name,
            seed=sae,
            group=group,
            floor=_FLOORS[formula],
            rival=line.rival,
            rival_value=float(_mean(line.rival_values[saes, tasks])),
            ceiling=float(np.mean(ceilings)),
            primary=measure == H and not group,
        )

    def _line(self, condition: str, formula: str, edit: str) -> "_Line":
        table = self.edited[condition]
        values, draws = self._values(table, formula, edit)
        rivals = {name: self._values(table, formula, name)[0] for name in _RIVALS}
        best = max(rivals, key=lambda name: float(_mean(rivals[name])))
        return _Line(condition, values, draws, self._over_seeds(draws), best, rivals[best])

    def _gained(self) -> list[Score]:
        """Return rows of (D - D0) / (1 - D0), with D0 the best trivial edit of an SAE and task."""
        rows = []
        for condition, table in self.edited.items():
            values, draws = self._values(table, "disentangle", CHOSEN)
            trivial = np.max(
                [self._values(table, "disentangle", edit)[0] for edit in _RIVALS], axis=0
            )
            room = np.where(trivial < 1, 1 - trivial, np.nan)
            gained = (values - trivial) / room
            spread = (draws - trivial[:, :, None]) / room[:, :, None]
            value, n = float(_mean(gained)), self._entities()
            lowest = float(_mean(-trivial / room))
            rows.append(
                Score(
                    evaluation=NAME,
                    measure="disentangle beyond trivial edits",
                    condition=condition,
                    **_interval(value, self._over_seeds(spread), n, lowest)._asdict(),
                    n=n,
                    floor=0.0,
                    ceiling=1.0,
                )
            )
        return rows

    def _plain(
        self,
        measure: str,
        of: Callable[[Edited], float],
        rival: str,
        of_rival: Callable[[Edited], float],
    ) -> list[Score]:
        """Return rows of a descriptive property of the edits, which is 0 without an edit."""
        return [
            Score(
                evaluation=NAME,
                measure=measure,
                condition=condition,
                **two_way_interval(
                    [[of(its) for its in line] for line in table], seed=self.seed
                )._asdict(),
                n=len(self.tasks),
                floor=0.0,
                rival=rival,
                rival_value=float(np.mean([[of_rival(its) for its in line] for line in table])),
            )
            for condition, table in self.edited.items()
        ]

    def _values(self, table: list[list[Edited]], formula: str, edit: str) -> tuple[Floats, Floats]:
        """Return values [SAEs, tasks] and their resamples [SAEs, tasks, draws]."""
        of = MEASURES[formula]
        outcomes = [[its.outcomes[edit] for its in line] for line in table]
        values = [[of(*each.rates())[0] for each in line] for line in outcomes]
        draws = [
            [
                of(*each.rates(self._resampled(task.kind, each)))
                for each, task in zip(line, self.tasks, strict=True)
            ]
            for line in outcomes
        ]
        return np.array(values), np.array(draws)

    def _resampled(self, kind: str, outcome: Outcome) -> Floats:
        """Return the counts of entities in resamples [draws, entities], the same for all edits."""
        if kind not in self._counts:
            there = np.zeros(len(outcome.cause_pairs), dtype=bool)
            for task, whole in zip(self.tasks, self.whole, strict=True):
                if task.kind == kind:
                    there |= whole.cause_pairs + whole.isolation_pairs > 0
            number = int(there.sum())
            generator = np.random.default_rng([self.seed, len(self._counts)])
            counts = np.zeros((DRAWS, len(there)))
            # Resamples have one entity fewer than there are, as in saefast.evaluation.intervals.
            counts[:, there] = generator.multinomial(
                max(number - 1, 1), np.full(number, 1 / number), size=DRAWS
            )
            self._counts[kind] = counts
        return self._counts[kind]

    def _over_seeds(self, draws: Floats) -> Floats:
        """Return means [draws] over tasks and resampled SAEs, from [SAEs, tasks, draws]."""
        saes = resamples_of(np.random.default_rng(self.seed), len(draws), DRAWS)
        # A resample may hold no pair of the only attribute, so that an SAE has no value in it.
        of_entities = _mean(_mean(draws, 1), 0)
        of_both = _mean(_mean(draws, 1), 0, saes.counts.T)
        return of_entities + saes.factors * (of_both - of_entities)

    def _entities(self, kind: str | None = None) -> int:
        """Return the number of entities with test pairs, of one kind or of all."""
        found: dict[str, int] = {}
        for task, whole in zip(self.tasks, self.whole, strict=True):
            found[task.kind] = max(found.get(task.kind, 0), whole.entities)
        return sum(found.values()) if kind is None else found[kind]


def _mean(
    values: Floats, axis: int | tuple[int, ...] | None = None, weights: Floats | float = 1.0
) -> Floats:
    """Return the weighted mean of the values that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = np.sum(np.where(known, values, 0.0) * weights, axis)
    number = np.sum(known * weights, axis)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)


def _interval(value: float, drawn: Floats, n: int, lowest: float = 0.0) -> Interval:
    """Return the interval of a rate over n entities, from `lowest` to 1."""
    interval = interval_of_draws(value, np.clip(drawn, lowest, 1.0))
    if interval.low == interval.high:  # no entity differs from the others
        return interval_of_equal_items(value, n, lowest, 1.0)
    return interval


def features(results: Results) -> tuple[Mapping[str, list[object]], ...]:
    """Return for each trained SAE the attribute that each latent carries most, with its score.

    Scores are relative to the attribute's largest; "" and 0 for latents that carry none.
    """
    columns = []
    for line in results.edited[TRAINED]:
        scores = np.array([its.scores.clamp(min=0).numpy() for its in line])
        largest = scores.max(1, keepdims=True)
        shares = np.divide(scores, largest, out=np.zeros_like(scores), where=largest > 0)
        names = [task.name for task in results.tasks]
        columns.append(
            {
                "edit_score": shares.max(0).tolist(),
                "edit_attribute": [
                    names[t] if share > 0 else ""
                    for t, share in zip(shares.argmax(0), shares.max(0), strict=True)
                ],
            }
        )
    return tuple(columns)
