"""Scores from the results of probing every SAE on every task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saefast.evaluation.condition_scores import scores_by_condition
from saefast.evaluation.conditions import PERMUTED_DECODER
from saefast.evaluation.intervals import (
    SHARE,
    Interval,
    gap_closed,
    paired_interval,
    two_way_interval,
)
from saefast.evaluation.probing.best_latents import agreement, hypergeometric_tail
from saefast.evaluation.probing.one_task import Probed
from saefast.evaluation.probing.rules import ProbingRule
from saefast.evaluation.scores import TRAINED, Evaluation, Score
from saefast.linalg import one_thread
from saefast.sae import SAE

NAME = "probe"
RANDOM, PERMUTED, TEXT, FULL = "random latents", "permuted labels", "text", "full"
OWN_CONDITIONS = (TRAINED, RANDOM, PERMUTED, TEXT, FULL)
"""Names of conditions that probing adds by itself"""
IN_GROUP, MATCHED = "best latent in group", "best latents matched"

Table = NDArray[np.float64]


def _closed(values: Table, floor: float, gaps: Sequence[tuple[float, float]]) -> list[float]:
    """Return the share of the gap from floor to ceiling that each task's value [tasks] closes."""
    return [
        gap_closed(value, floor, ceiling, noise)
        for value, (ceiling, noise) in zip(values.tolist(), gaps, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """Results of all SAEs on one task."""

    name: str
    notes: tuple[str, ...]
    trained: Sequence[Sequence[Probed]]
    """results of each trained SAE on each split"""
    others: Mapping[str, Sequence[Probed]]
    """by condition, results of each of its SAEs on the first split"""
    full: tuple[float, Interval]
    text: tuple[float, Interval]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results on all tasks."""

    rule: ProbingRule
    ks: Sequence[int]
    saes: Sequence[SAE]
    groups: Sequence[str]
    tasks: Sequence[TaskResults]
    seed: int

    def evaluation(self) -> Evaluation:
        """Return the scores."""
        scores: list[Score] = []
        noise = {}
        for k in self.ks:
            scores += self._of_all(k)
            noise[self._measure(k)] = float(self._noise(k).std(ddof=1))
        for k in self.ks:
            for group in self.groups:
                scores += self._of_group(k, group)
        notes = [note for task in self.tasks for note in task.notes]
        for group in self.groups:
            scores += self._best_in_group(group)
            notes += self._best_by_count(group)
        if len(self.saes) > 1:
            scores.append(self._best_matched())
        return Evaluation(
            name=NAME,
            scores=tuple(scores),
            noise=noise,
            features=tuple(self._features(number) for number in range(len(self.saes))),
            notes=tuple(notes),
        )

    def _measure(self, k: int) -> str:
        return f"{self.rule.measure.name} at {k}"

    @property
    def _names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def _of_trained(self, value: Callable[[Probed], float]) -> Table:
        """Return a value of each trained SAE and task on the first split, [saes, tasks]."""
        saes = range(len(self.saes))
        return np.array([[value(task.trained[s][0]) for task in self.tasks] for s in saes])

    def _of_all(self, k: int) -> list[Score]:
        """Score every condition, and the share of the gap from floor to ceiling that it closes."""
        values = {TRAINED: self._of_trained(lambda its: its.value[k])}
        intervals = {TRAINED: [[its[0].interval[k] for its in row] for row in self._by_sae()]}
        for name in self.tasks[0].others:
            rows = list(zip(*(task.others[name] for task in self.tasks), strict=True))
            values[name] = np.array([[its.value[k] for its in row] for row in rows])
            intervals[name] = [[its.interval[k] for its in row] for row in rows]
        rivals = [name for name in values if name not in (TRAINED, PERMUTED_DECODER)]
        values[RANDOM] = self._of_trained(lambda its: its.random[k])
        values[PERMUTED] = self._of_trained(lambda its: its.permuted[k])
        for name in (TEXT, FULL):
            found = [getattr(task, name) for task in self.tasks]
            values[name] = np.array([[value for value, _ in found]])
            intervals[name] = [[interval for _, interval in found]]
        floor, ceiling = self.rule.measure.floor, values[FULL][0]
        scores = scores_by_condition(
            NAME,
            self._measure(k),
            values,
            self._names,
            floor=floor,
            ceiling=ceiling,
            rivals=[*rivals, RANDOM, TEXT],
            intervals=intervals,
            limits=SHARE,
            primary=k == self.ks[0],
            seed=self.seed,
        )
        scores = [self._of_one(score, intervals) for score in scores]
        noise = self._noise(k, by_task=True).std(0, ddof=1)
        gaps = list(zip(ceiling, noise, strict=True))
        shown = [TRAINED, *rivals, RANDOM, TEXT]
        closed = {name: [_closed(row, floor, gaps) for row in values[name]] for name in shown}
        return scores + scores_by_condition(
            NAME,
            f"gap closed at {k}",
            closed,
            self._names,
            floor=0.0,
            ceiling=1.0,
            rivals=[*rivals, RANDOM, TEXT],
            seed=self.seed,
        )

    def _of_one(self, score: Score, intervals: Mapping[str, Sequence[Sequence[Interval]]]) -> Score:
        """Replace the interval of the score of one SAE and task by the interval over examples."""
        known = intervals.get(score.condition, ())
        if score.task or len(self.tasks) > 1 or len(known) != 1:
            return score
        return replace(score, low=known[0][0].low, high=known[0][0].high)

    def _by_sae(self) -> list[tuple[Sequence[Probed], ...]]:
        return list(zip(*(task.trained for task in self.tasks), strict=True))

    def _noise(self, k: int, by_task: bool = False) -> Table:
        """Return the mean of each split over SAEs, and over tasks unless `by_task`."""
        every = np.array(
            [[[its.value[k] for its in splits] for splits in row] for row in self._by_sae()]
        )
        table: Table = np.nanmean(every, axis=0 if by_task else (0, 1))
        return table.T

    def _of_group(self, k: int, group: str) -> list[Score]:
        """Score a group of latents, random latents of the same mass, and their difference."""
        matched = f"{group}:mass"

        def value(its: Probed, name: str) -> float:
            return its.groups[name][k]

        tables = {name: self._of_trained(partial(value, name=name)) for name in (group, matched)}
        common: dict[str, Any] = {
            "floor": self.rule.measure.floor,
            "ceiling": [task.full[0] for task in self.tasks],
            "limits": SHARE,
            "seed": self.seed,
        }
        scores = [
            score
            for name, table in tables.items()
            for score in scores_by_condition(
                NAME, self._measure(k), {TRAINED: table}, self._names, group=name, **common
            )
        ]
        difference = paired_interval(tables[group], tables[matched], seed=self.seed, limits=SHARE)
        return [
            *scores,
            Score(
                evaluation=NAME,
                measure=self._measure(k),
                condition=TRAINED,
                group=f"{group} - {matched}",
                n=len(self.tasks),
                floor=0.0,
                **difference._asdict(),
            ),
        ]

    def _best_in_group(self, group: str) -> list[Score]:
        """Score how often the best latent of a task is in a group, with its mass share as floor."""
        hits = self._of_trained(lambda its: float(its.masks[group][its.best[0]]))
        shares = self._of_trained(lambda its: its.shares[group]).mean(0)
        return scores_by_condition(
            NAME,
            IN_GROUP,
            {TRAINED: hits},
            self._names,
            group=group,
            floor=shares,
            limits=SHARE,
            seed=self.seed,
        )

    def _best_by_count(self, group: str) -> list[str]:
        """Return notes with the probability of as many best latents in a group by chance."""
        notes = []
        for number, row in enumerate(self._by_sae()):
            live = torch.stack([its[0].choice != 0 for its in row]).any(0)
            mask = row[0][0].masks[group]
            best = sorted({int(its[0].best[0]) for its in row} - {-1})
            hits = int(mask[best].sum())
            p = hypergeometric_tail(hits, len(best), int((mask & live).sum()), int(live.sum()))
            notes.append(
                f"SAE {number}: {hits} of {len(best)} best latents are {group}, compared with "
                f"{int((mask & live).sum())} of {int(live.sum())} latents that fire; probability "
                f"of as many by chance: p = {p:.2g}"
            )
        return notes

    def _best_matched(self) -> Score:
        """Score how often the best latents of a task in two SAEs are mutually nearest."""
        rows = self._by_sae()
        with one_thread():
            found, chance = agreement(
                self.saes,
                [[int(its[0].best[0]) for its in row] for row in rows],
                [[its[0].near for its in row] for row in rows],
            )
        interval = two_way_interval(found, seed=self.seed, limits=SHARE)
        return Score(
            evaluation=NAME,
            measure=MATCHED,
            condition=TRAINED,
            n=len(self.tasks),
            floor=float(np.nanmean(chance)),
            **interval._asdict(),
        )

    def _features(self, number: int) -> dict[str, Any]:
        """Return for each latent the task that it predicts best, with its score."""
        choice = torch.stack([task.trained[number][0].choice for task in self.tasks])
        best = choice.abs().argmax(0)
        value = choice.gather(0, best[None])[0]
        names = [
            self._names[task] if size != 0 else ""
            for task, size in zip(best.tolist(), value.tolist(), strict=True)
        ]
        return {"probe_task": names, f"probe_{self.rule.choice}": value}
