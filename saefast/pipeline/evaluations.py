"""Execution of evaluations of a subject, with one table for the scores of all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saefast.disk.tables import read_table, write_table
from saefast.evaluation.scores import Evaluation, Score
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject, subject_of_run
from saefast.run_folder import SCORES
from saefast.run_records import EvaluationSummary, read_record, write_record

_SCORES = Path(SCORES).name

Measure = Callable[[Subject, EvaluateSettings], Evaluation]
"""Function that evaluates a subject"""


def evaluate_run(name: str, measure: Measure, job: Job) -> None:
    """Evaluate the SAEs of a run and add the results on single latents to its features."""
    how = job.settings.evaluate
    found = evaluated(name, measure, subject_of_run(job, how), how)
    if found.features:
        job.add_features(_columns(found.features, [sae.m for sae in job.saes]))


def evaluated(name: str, measure: Measure, subject: Subject, how: EvaluateSettings) -> Evaluation:
    """Run an evaluation; write its scores and its summary into the folder of the subject."""
    begun = time.perf_counter()
    found = measure(subject, how)
    _keep_scores(subject.out / _SCORES, found)
    write_record(
        subject.out / f"{name}.json",
        EvaluationSummary(
            name=name,
            noise=dict(found.noise),
            notes=list(found.notes),
            budget=how.budget,
            conditions=found.conditions,
            seconds=round(time.perf_counter() - begun, 1),
        ),
    )
    return found


def kept_evaluation(out: Path, name: str) -> Evaluation:
    """Read the scores, noise and notes of a finished evaluation."""
    summary = read_record(out / f"{name}.json", EvaluationSummary)
    table = read_table(out / _SCORES)
    if summary is None or table is None:
        raise FileNotFoundError(
            f"{out} holds no scores of {name}; run: saefast evaluate RUN {name}"
        )
    noise = {key: float("nan") if value is None else value for key, value in summary.noise.items()}
    return Evaluation(
        name=name,
        scores=tuple(Score(**row) for row in table.to_pylist() if row["evaluation"] == name),
        noise=noise,
        notes=tuple(summary.notes),
    )


def _keep_scores(path: Path, found: Evaluation) -> None:
    """Replace the evaluation's former scores in the table; other evaluations' are unchanged."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = found.to_table()
    before = read_table(path)
    if before is not None:
        others = before.filter(pc.not_equal(before["evaluation"], found.name))
        table = pa.concat_tables([others, table])
    write_table(path, table)


def _columns(
    features: Sequence[Mapping[str, Any]], sizes: Sequence[int]
) -> dict[str, Sequence[Any]]:
    """Return the columns for all SAEs, with nulls for SAEs that were not evaluated."""
    every = [*features, *({} for _ in sizes[len(features) :])]
    names = dict.fromkeys(name for each in features for name in each)
    return {
        name: [each.get(name, [None] * size) for each, size in zip(every, sizes, strict=True)]
        for name in names
    }
