"""Files of evaluations in a run, with scores of known size."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from helpers.tiny_run import NASTY

from saefast.disk.tables import add_columns, read_json, read_table, write_json, write_table
from saefast.evaluation.condition_scores import scores_by_condition
from saefast.evaluation.scores import Evaluation, Score
from saefast.run_folder import FEATURES, SCORES, STAGES, evaluation_file
from saefast.run_records import EvaluationSummary, write_record

TASKS = ("code", "prose", "numbers", "names", "dates", "places")
LEADS = {"frozen_decoder": 0.05, "soft_frozen": 0.01, "untrained": 0.2, "pca": 0.1}
"""Advantages of the trained SAEs of a run with evaluations over each condition"""


def with_evaluations(run: Path) -> Path:
    """Add three evaluations to a run in place, and columns to its features."""
    write_evaluations(run, probing(), explaining(), steering())
    table = read_table(run / FEATURES)
    count = table.num_rows
    generator = np.random.default_rng(1)
    detection = generator.random(count)
    columns = {
        "explanation": [f"token is {NASTY}{i}" if i % 3 else None for i in range(count)],
        "explanation_kind": [(None, "topic", "surface")[i % 3] for i in range(count)],
        "rule_score": detection,
        "rule_null": np.full(count, 0.625),
        "detection": np.where(np.arange(count) % 2, detection, np.nan),
        "detection_shuffled": np.full(count, 0.25),
        "steer_specificity": np.where(np.arange(count) % 2, detection - 0.25, np.nan),
        "steer_success": np.where(np.arange(count) % 5, generator.random(count), np.nan),
        "steer_success_control": np.full(count, 0.125),
    }
    add_columns(run / FEATURES, columns)
    return run


def write_evaluations(run: Path, *evaluations: Evaluation) -> None:
    """Write scores and summaries, and mark their stages as finished."""
    import pyarrow as pa

    write_table(run / SCORES, pa.concat_tables([each.to_table() for each in evaluations]))
    stages = read_json(run / STAGES) or {}
    for each in evaluations:
        summary = EvaluationSummary(
            name=each.name,
            noise=dict(each.noise),
            notes=list(each.notes),
            budget="quick",
            conditions=list(LEADS),
            seconds=1.0,
        )
        write_record(run / evaluation_file(each.name), summary)
        stages[each.name] = {"digest": "", "seconds": 1.0}
    write_json(run / STAGES, stages)


def probing(leads: Mapping[str, float] = LEADS, noise: float = 0.001) -> Evaluation:
    """Return scores of four SAEs, of conditions that are worse by `leads`, and of groups."""
    scores = scores_by_condition(
        "probe",
        "auroc at 1",
        _values(0.8, leads),
        TASKS,
        floor=0.5,
        ceiling=0.95,
        rivals=("untrained", "pca"),
        primary=True,
    )
    worse = {name: lead + 0.1 for name, lead in leads.items()}
    scores += scores_by_condition("probe", "auroc at 5", _values(0.9, worse), TASKS, floor=0.5)
    for place, group in enumerate(("stable", "stable:mass", "unstable", "unstable:mass")):
        values = {"trained": _values(0.75 - 0.05 * place, {})["trained"]}
        scores += scores_by_condition("probe", "auroc at 1", values, TASKS, group=group, floor=0.5)
    return Evaluation(
        name="probe",
        scores=tuple(scores),
        noise={"auroc at 1": noise},
        notes=(f"3 of 9 tasks were left out: {NASTY}",),
    )


def explaining(leads: Mapping[str, float] = LEADS, surface: float = 0.1) -> Evaluation:
    """Return scores of explanations, and shares of latents that surface form explains."""
    scores = scores_by_condition(
        "explain",
        "specificity",
        _values(0.4, leads),
        TASKS,
        floor=0.0,
        ceiling=0.5,
        rivals=("untrained",),
        primary=True,
    )
    shares = {"stable": 0.3, "unstable": 0.4, "unstable - stable at equal firing rate": surface}
    for group, share in shares.items():
        score = Score(
            evaluation="explain",
            measure="explained by surface",
            condition="trained",
            value=share,
            low=share - 0.05,
            high=share + 0.05,
            n=100,
            group=group,
        )
        scores.append(score)
    return Evaluation(name="explain", scores=tuple(scores))


def editing(lead: float) -> Evaluation:
    """Return scores of edits; those of a baseline are worse by `lead`."""
    scores = scores_by_condition(
        "edit", "H", _values(0.5, {"soft_frozen": lead}), TASKS, floor=0.0, primary=True
    )
    return Evaluation(name="edit", scores=tuple(scores))


def steering(correlation: float = 0.1) -> Evaluation:
    """Return the success of steering, and its prediction from explanations."""
    scores = scores_by_condition(
        "steer",
        "success by rule above mismatched",
        {"trained": _values(0.3, {})["trained"]},
        TASKS,
        floor=0.0,
        ceiling=1.0,
        primary=True,
    )
    predicted = Score(
        evaluation="steer",
        measure="spearman",
        condition="trained",
        value=correlation,
        low=correlation - 0.1,
        high=correlation + 0.1,
        n=60,
        task="specificity",
        floor=0.0,
    )
    joint = (
        dataclasses.replace(predicted, measure="joint spearman", task=task, value=value)
        for task, value in (("detection", correlation), ("stability", -0.2))
    )
    return Evaluation(name="steer", scores=(*scores, predicted, *joint))


def _values(trained: float, leads: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return by condition values [4 SAEs, tasks] with small variation."""
    spread = 0.01 * np.sin(np.arange(4)[:, None] + np.arange(len(TASKS)))
    values = {"trained": trained + spread}
    for name, lead in leads.items():
        values[name] = trained - lead + spread
    return values
