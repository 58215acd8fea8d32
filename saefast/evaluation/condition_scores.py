"""Scores of one measure under several conditions, with bootstrap intervals over SAEs and tasks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from saefast.evaluation.intervals import (
    NOWHERE,
    UNLIMITED,
    Floats,
    Interval,
    Limits,
    paired_interval,
    two_way_interval,
)
from saefast.evaluation.scores import TRAINED, Score

_NAN = float("nan")


def scores_by_condition(
    evaluation: str,
    measure: str,
    values: Mapping[str, ArrayLike],
    tasks: Sequence[str],
    *,
    group: str = "",
    floor: ArrayLike = _NAN,
    ceiling: ArrayLike = _NAN,
    rivals: Sequence[str] = (),
    intervals: Mapping[str, Sequence[Sequence[Interval]]] | None = None,
    limits: Limits = UNLIMITED,
    primary: bool = False,
    seed: int = 0,
) -> list[Score]:
    """Build the scores of one measure: overall, of each SAE, of each task, and differences.

    Overall scores and differences to `TRAINED` have two-way bootstrap intervals over seeds and
    tasks; scores of one SAE have them over tasks. Of a single SAE and task there is nothing to
    resample: the score has its known interval, if any, and the difference has none.

    Args:
        evaluation: name of the evaluation.
        measure: name of the measure.
        values: by condition, [seeds, tasks].
        tasks: name of each task.
        group: group of latents that the values are of.
        floor: value without information, one or [tasks].
        ceiling: upper bound or best attainable value, one or [tasks].
        rivals: conditions of which the best becomes the rival of every other.
        intervals: by condition, intervals of each SAE and task, where they are known.
        limits: smallest and largest possible value, beyond which no interval extends.
        primary: whether the measure is the primary one of its evaluation.
        seed: seed of the bootstrap.

    Returns:
        For each condition its overall score, its difference to `TRAINED`, the score of each SAE,
        then the score of each SAE and task.
    """
    tables = {name: np.asarray(table, dtype=np.float64) for name, table in values.items()}
    for name, table in tables.items():
        if table.ndim != 2 or table.shape[1] != len(tasks):
            raise ValueError(
                f"values[{name!r}] must be [seeds, {len(tasks)} tasks], got {table.shape}"
            )
    floors, ceilings = (
        np.broadcast_to(np.asarray(each, float), len(tasks)) for each in (floor, ceiling)
    )
    means = {name: _mean(tables[name]) for name in rivals if name in tables}
    scores: list[Score] = []
    for name, table in tables.items():
        best = max((each for each in means if each != name), key=means.__getitem__, default="")

        row = partial(
            _row,
            rival=tables.get(best),
            floors=floors,
            ceilings=ceilings,
            tasks=tasks,
            common={
                "evaluation": evaluation,
                "measure": measure,
                "condition": name,
                "group": group,
                "rival": best,
                "primary": primary,
            },
        )
        known = (intervals or {}).get(name)
        overall = two_way_interval(table, seed=seed, limits=limits)
        if table.size == 1 and known is not None:
            overall = known[0][0]
        scores.append(row(overall, int((~np.isnan(table)).any(0).sum())))
        if name != TRAINED and TRAINED in tables:
            difference = paired_interval(tables[TRAINED], table, seed=seed, limits=limits)
            scores.append(scores[-1].difference_to_trained(difference))
        if len(table) > 1:
            scores += [
                row(two_way_interval(its[None], seed=seed, limits=limits), len(tasks), sae=s)
                for s, its in enumerate(table)
            ]
        if len(tasks) > 1:
            scores += [
                row(
                    NOWHERE._replace(value=float(value)) if known is None else known[s][t],
                    1,
                    task=t,
                    sae=s,
                )
                for s, its in enumerate(table)
                for t, value in enumerate(its)
            ]
    return scores


def _row(
    value: Interval,
    n: int,
    *,
    task: int | None = None,
    sae: int | None = None,
    rival: Floats | None,
    floors: Floats,
    ceilings: Floats,
    tasks: Sequence[str],
    common: Mapping[str, Any],
) -> Score:
    """Build the score of one condition over all tasks or of one task."""
    at = slice(None) if task is None else slice(task, task + 1)
    return Score(
        **common,
        **value._asdict(),
        n=n,
        task="" if task is None else tasks[task],
        seed=sae,
        floor=_mean(floors[at]),
        rival_value=_NAN if rival is None else _mean(rival[:, at]),
        ceiling=_mean(ceilings[at]),
    )


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else _NAN
