"""Choose scores of evaluations for figures, findings and tables, and write them for a reader."""

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
"""Words for each evaluation, in the order of the report"""
GROUPS = ("stable", "stable:mass", "unstable", "unstable:mass")
"""Groups that are drawn, each above random latents of the same activation mass"""
EXPLANATION_SCORES = ("specificity", "detection", "fuzzing", "rule score")
"""Predictors of steering that say how good the explanation of a latent is"""
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
    """Return the primary measure of the trained SAEs; None where there is none."""
    found = [score for score in primary(data, evaluation) if score.condition == TRAINED]
    return found[0] if found else None


def differences(data: RunData, evaluation: str) -> dict[str, Score]:
    """Return by condition how much better the trained SAEs are in the primary measure."""
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
    """Return the rank correlations of scores of explanations with what steering gains."""
    return [
        score
        for score in data.scores
        if score.evaluation == "steer"
        and score.measure == "spearman"
        and score.seed is None
        and score.task.replace("_", " ") in EXPLANATION_SCORES
        and _known(score.value)
    ]


def is_difference(score: Score) -> bool:
    """Say whether a score is a difference to the trained SAEs."""
    return score.condition.startswith(_LESS)


def least_difference(data: RunData, evaluation: str, measure: str) -> float | None:
    """Return the smallest difference of two SAEs that means something; None if not known."""
    summary = data.summaries.get(evaluation)
    noise = summary.noise.get(measure) if summary else None
    return None if noise is None else smallest_difference(noise)


def in_words(score: Score) -> str:
    """Return a value with its interval and everything that it is to be read beside."""
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
    """Return the interval of a score in words."""
    if not (_known(score.low) and _known(score.high)):
        return "no interval"
    return f"95 % interval {number(score.low)} to {number(score.high)}"


def number(value: float) -> str:
    """Return a number with three decimals, a dash where it is not known."""
    return f"{value:z.3f}" if _known(value) else "-"


def known(values: Sequence[float]) -> list[float]:
    """Return the values that are finite."""
    return [value for value in values if _known(value)]


def _known(value: float) -> bool:
    return math.isfinite(value)
