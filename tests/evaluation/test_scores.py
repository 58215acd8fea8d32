"""Scores have floor, rival, ceiling and interval."""

import dataclasses
import math
import re

import numpy as np
import pytest

from saefast.evaluation.condition_scores import scores_by_condition
from saefast.evaluation.intervals import Interval, paired_interval, two_way_interval
from saefast.evaluation.scores import Evaluation


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    return {
        "trained": 0.8 + 0.1 * generator.standard_normal((4, 3)),
        "untrained": 0.7 + 0.1 * generator.standard_normal((4, 3)),
        "residual": 0.75 + 0.1 * generator.standard_normal((1, 3)),
    }


@pytest.fixture
def evaluation(values):
    scores = scores_by_condition(
        "probe",
        "auroc at 1",
        values,
        ["a", "b", "c"],
        floor=0.5,
        ceiling=[0.9, 0.95, 1.0],
        rivals=("untrained", "residual"),
        primary=True,
    )
    return Evaluation(
        name="probe", scores=tuple(scores), noise={"auroc at 1": 0.01}, notes=("3 texts left out",)
    )


def test_overall_scores_have_floor_rival_and_ceiling(evaluation, values):
    score = evaluation.overall("auroc at 1")
    assert (score.value, score.low, score.high) == two_way_interval(values["trained"])
    assert (score.n, score.floor, score.ceiling) == (3, 0.5, pytest.approx(0.95))
    best = max(("untrained", "residual"), key=lambda name: values[name].mean())
    assert (score.rival, score.rival_value) == (best, pytest.approx(values[best].mean()))
    assert score.primary


def test_one_sae_and_task_have_the_known_interval_or_none():
    """A bootstrap over one value has no width, as if nothing could vary."""
    known = Interval(0.8, 0.7, 0.9)
    for intervals, ends in ((None, (math.nan, math.nan)), ({"trained": [[known]]}, (0.7, 0.9))):
        scores = scores_by_condition(
            "probe", "auroc at 1", {"trained": [[0.8]], "pca": [[0.6]]}, ["a"], intervals=intervals
        )
        trained, pca, difference = scores
        assert (trained.value, trained.low, trained.high) == pytest.approx(
            (0.8, *ends), nan_ok=True
        )
        assert math.isnan(pca.low)
        assert difference.value == pytest.approx(0.2)
        assert math.isnan(difference.low)


def test_no_interval_extends_beyond_the_limits(values):
    values = {name: np.clip(table + 0.2, 0, 1) for name, table in values.items()}
    scores = scores_by_condition("probe", "auroc at 1", values, ["a", "b", "c"], limits=(0.0, 1.0))
    free = scores_by_condition("probe", "auroc at 1", values, ["a", "b", "c"])
    assert max(score.high for score in free) > 1
    for score, other in zip(scores, free, strict=True):
        lowest = -1.0 if " - " in score.condition else 0.0
        ends = np.clip([other.low, other.high], lowest, 1.0)
        np.testing.assert_array_equal([score.low, score.high], ends)


def test_a_condition_is_not_its_own_rival(evaluation):
    assert evaluation.overall("auroc at 1", "residual").rival == "untrained"
    assert evaluation.overall("auroc at 1", "untrained").rival == "residual"


def test_differences_are_paired_and_not_primary(evaluation, values):
    score = evaluation.overall("auroc at 1", "trained - untrained")
    expected = paired_interval(values["trained"], values["untrained"])
    assert (score.value, score.low, score.high) == expected
    assert (score.floor, score.rival, score.primary) == (0, "", False)
    assert math.isnan(score.ceiling)


def test_every_sae_and_task_has_its_score(evaluation, values):
    of_saes = [s for s in evaluation.scores if s.seed is not None and not s.task]
    assert [s.value for s in of_saes if s.condition == "trained"] == pytest.approx(
        values["trained"].mean(1)
    )
    of_tasks = {(s.condition, s.seed, s.task): s for s in evaluation.scores if s.task}
    assert of_tasks["untrained", 2, "b"].value == values["untrained"][2, 1]
    assert of_tasks["untrained", 2, "b"].ceiling == 0.95
    assert len(of_tasks) == 27


def test_given_intervals_of_tasks_are_kept(values):
    known = [[Interval(0.5, 0.4, 0.6)] * 3] * 4
    scores = scores_by_condition(
        "probe", "auroc", values, ["a", "b", "c"], intervals={"trained": known}
    )
    found = [s for s in scores if s.task and s.condition == "trained"]
    assert {(s.low, s.high) for s in found} == {(0.4, 0.6)}


def test_lines_print_intervals_with_every_mean(evaluation):
    lines = evaluation.lines()
    assert re.split("  +", lines[0]) == [
        "measure",
        "condition",
        "value",
        "95 % interval",
        "floor",
        "best trivial rival",
        "ceiling",
    ]
    trained = next(line for line in lines if " trained " in line)
    score = evaluation.overall("auroc at 1")
    for part in (
        f"{score.value:.3f}",
        f"{score.low:.3f} to {score.high:.3f}",
        "0.500",
        score.rival,
        "0.950",
    ):
        assert part in trained
    assert any("below 0.028 are within the noise" in line for line in lines)
    assert lines[-1] == "3 texts left out"


def test_lines_have_all_conditions_of_the_primary_measure_only(evaluation, values):
    other = scores_by_condition("probe", "auroc at 5", values, ["a", "b", "c"])
    lines = dataclasses.replace(evaluation, scores=(*evaluation.scores, *other)).lines()
    of_primary = [line for line in lines if line.startswith("auroc at 1 ")]
    assert len(of_primary) == 2 * len(values) - 1  # each condition, and the differences
    (trained,) = [line for line in lines if line.startswith("auroc at 5 ")]
    assert " trained " in trained
    left = 2 * len(values) - 2
    assert f"{left} scores of other conditions and groups are in the table of scores" in lines
    assert not any("table of scores" in line for line in evaluation.lines())


def test_the_table_has_a_row_for_each_score(evaluation):
    table = evaluation.to_table()
    assert table.num_rows == len(evaluation.scores)
    assert {"evaluation", "condition", "group", "floor", "ceiling", "rival", "low"} <= set(
        table.column_names
    )


def test_conditions_are_named_once_without_differences(evaluation):
    assert evaluation.conditions == ["untrained", "residual"]


def test_an_unknown_score_is_a_key_error(evaluation):
    with pytest.raises(KeyError, match="no 'f1' of 'trained'"):
        evaluation.overall("f1")


def test_values_must_cover_all_tasks():
    with pytest.raises(ValueError, match=r"\[seeds, 2 tasks\], got \(1, 3\)"):
        scores_by_condition("probe", "auroc", {"trained": np.zeros((1, 3))}, ["a", "b"])
