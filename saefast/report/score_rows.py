"""Selection and formatting of evaluation scores for figures, findings and tables."""

import math
from collections.abc import Sequence

from saefast.evaluation.intervals import smallest_difference
from saefast.evaluation.scores import TRAINED, Score
from saefast.report.run_data import RunData

TITLES = {
    "probe": "Probing",
    "explain": "Explaining",
    "steer": "Steering",
    "edit": "Editing",
    "absorb": "Absorption",
    "core": "Core",
}
"""Titles of the evaluations, in the order of the report."""
GROUPS = ("stable", "stable:mass", "unstable", "unstable:mass")
"""Groups that are drawn, each above random latents of the same activation mass."""
EXPLANATION_SCORES = ("specificity", "detection", "fuzzing", "rule score")
"""Predictors of steering that measure the quality of a latent's explanation."""
_LESS = f"{TRAINED} - "


def overall(data: RunData, evaluation: str) -> list[Score]:
    """Return the scores of an evaluation over all tasks and SAEs, in the order of the file."""
    return [
        score
        for score in data.scores
        if score.evaluation == evaluation and not score.task and score.seed is None
    ]


def primary(data: RunData, evaluation: str) -> list[Score]:
    """Return the primary measure of each condition over all latents."""
    return [
        score
        for score in overall(data, evaluation)
        if score.primary and not score.group and not is_difference(score)
    ]


def trained(data: RunData, evaluation: str) -> Score | None:
    """Return the primary measure of the trained SAEs, or None."""
    found = [score for score in primary(data, evaluation) if score.condition == TRAINED]
    return found[0] if found else None


def differences(data: RunData, evaluation: str) -> dict[str, Score]:
    """Return the advantage of the trained SAEs in the primary measure, by condition."""
    measures = {score.measure for score in primary(data, evaluation)}
    return {
        score.condition.removeprefix(_LESS): score
        for score in overall(data, evaluation)
        if is_difference(score) and score.measure in measures and not score.group
    }


def of_groups(data: RunData, evaluation: str, measure: str) -> dict[str, Score]:
    """Return a measure of the trained SAEs by group, for `GROUPS` that have it."""
    found = {
        score.group: score
        for score in overall(data, evaluation)
        if score.condition == TRAINED and score.measure == measure
    }
    return {group: found[group] for group in GROUPS if group in found}


def correlations(data: RunData) -> list[Score]:
    """Return the rank correlations of explanations' scores with the gain from steering."""
    return [
        score
        for score in data.scores
        if score.evaluation == "steer"
        and score.measure == "spearman"
        and score.seed is None
        and score.task.replace("_", " ") in EXPLANATION_SCORES
        and _known(score.value)
    ]


def joint_correlations(data: RunData) -> list[Score]:
    """Return the rank correlations with the gain from steering that hold each other fixed."""
    return [
        score
        for score in data.scores
        if score.evaluation == "steer"
        and score.measure == "joint spearman"
        and score.seed is None
        and _known(score.value)
    ]


def is_difference(score: Score) -> bool:
    """Return whether a score is a difference to the trained SAEs."""
    return score.condition.startswith(_LESS)


def least_difference(data: RunData, evaluation: str, measure: str) -> float | None:
    """Return the smallest difference of two SAEs beyond the noise, or None if unknown."""
    summary = data.summaries.get(evaluation)
    noise = summary.noise.get(measure) if summary else None
    return None if noise is None else smallest_difference(noise)


def in_words(score: Score) -> str:
    """Format a value with its interval, floor, rival and ceiling."""
    beside = [
        f"{words} {number(value)}"
        for words, value in (
            ("floor", score.floor),
            (f"best trivial rival {score.rival}", score.rival_value),
            ("ceiling", score.ceiling),
        )
        if _known(value)
    ]
    value = number(score.value) if _known(score.value) else "no value"
    return f"{value} ({', '.join([interval(score), *beside])})"


def interval(score: Score) -> str:
    """Format the interval of a score."""
    if not (_known(score.low) and _known(score.high)):
        return "no interval"
    return f"95 % interval {number(score.low)} to {number(score.high)}"


def number(value: float) -> str:
    """Format a number with three decimals, or as a dash if unknown."""
    return f"{value:z.3f}" if _known(value) else "-"


def known(values: Sequence[float]) -> list[float]:
    """Return the finite values."""
    return [value for value in values if _known(value)]


def _known(value: float) -> bool:
    return math.isfinite(value)
