"""Figures of evaluations: values with intervals, floors, rivals and ceilings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.scores import TRAINED, Score
from saefast.report.chart import Chart
from saefast.report.figures.features import GROUP_COLOURS
from saefast.report.figures.figure import Figure
from saefast.report.run_data import RunData
from saefast.report.scale import Scale, covering
from saefast.report.score_rows import (
    TITLES,
    correlations,
    in_words,
    interval,
    known,
    number,
    of_groups,
    primary,
    trained,
)

SECTION = "Evaluations"

_LONGEST_NAME = 18
_SCORES = {
    "steer_specificity": "detection above the detection by another explanation",
    "rule_score": "balanced accuracy of the rule",
}
"""Columns of scores of explanations, of which the first with the most features is drawn."""
_MARKS = (
    "Points are values, with 95 % intervals; next to each are the floor (red: no information), the "
    "best trivial rival (orange diamond) and the ceiling (green)."
)


def evaluation_figures(data: RunData) -> Iterator[Figure]:
    """Draw the figures that the scores of a run allow."""
    for name in TITLES:
        yield from _of_conditions(data, name)
    for name in TITLES:
        yield from _of_groups(data, name)
    yield from _explanations_and_steering(data)


def _of_conditions(data: RunData, name: str) -> Iterator[Figure]:
    """Draw the primary measure of an evaluation, with a row for each condition."""
    rows = [
        _Row(score.condition, "s0" if score.condition == TRAINED else "s2", score)
        for score in primary(data, name)
    ]
    if not known([row.score.value for row in rows]):
        return
    chart = _forest(rows)
    chart.legend("trained", "s0")
    chart.legend("others", "s2")
    _explain_marks(chart)
    yield Figure(
        f"evaluation-{name}",
        f"{TITLES[name]}: {rows[0].score.measure}",
        f"One row for each kind of SAE, all evaluated by the same code. {_MARKS} What matters is "
        "how far the trained SAEs are from the others.",
        _listed(rows),
        chart.svg(),
        f"{_capital(rows[0].name)} SAEs reach {in_words(rows[0].score)}.",
    )


def _of_groups(data: RunData, name: str) -> Iterator[Figure]:
    """Draw the primary measure of stable and unstable latents beside random ones."""
    whole = trained(data, name)
    groups = of_groups(data, name, whole.measure) if whole else {}
    rows = [
        _Row(group.replace(":mass", ", random"), GROUP_COLOURS.get(group, "s2"), score)
        for group, score in groups.items()
    ]
    if not known([row.score.value for row in rows]):
        return
    chart = _forest(rows)
    _explain_marks(chart)
    yield Figure(
        f"evaluation-groups-{name}",
        f"{TITLES[name]} by stability: {rows[0].score.measure}",
        "Trained SAEs with the latents of one group only. Below each group: random latents with "
        f"the same activation mass. {_MARKS}",
        _listed(rows),
        chart.svg(),
        f"{_capital(', '.join(f'{name} {number(score.value)}' for name, _, score in rows))}.",
    )


class _Row(NamedTuple):
    """Score to draw, with its name and colour."""

    name: str
    colour: str
    score: Score


def _forest(rows: Sequence[_Row]) -> Chart:
    """Draw scores as rows, the first one at the top."""
    fields = ("value", "low", "high", "floor", "rival_value", "ceiling")
    ends = [getattr(row.score, field) for row in rows for field in fields]
    chart = Chart(
        covering(known(ends), zero=False),
        Scale(-0.6, len(rows) - 0.4),
        rows[0].score.measure,
        "",
        y_names=[_shortened(row.name) for row in reversed(rows)],
        left=142,
    )
    for place, (name, colour, score) in enumerate(reversed(rows)):
        for words, value, its_colour in (
            ("floor", score.floor, "s5"),
            ("ceiling", score.ceiling, "s3"),
        ):
            if known([value]):
                chart.tick(value, place, its_colour, f"{words} of {name}: {number(value)}")
        if known([score.rival_value]):
            rival = f"best trivial rival of {name}: {score.rival} {number(score.rival_value)}"
            chart.diamond(score.rival_value, place, "s1", rival)
        if len(known([score.low, score.high])) == 2:
            chart.interval(score.low, score.high, place)
        if known([score.value]):
            chart.point(score.value, place, colour, f"{name}: {in_words(score)}")
    return chart


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _explain_marks(chart: Chart) -> None:
    """Add the marks of these charts to the legend."""
    chart.legend("floor", "s5")
    chart.legend("rival", "s1")
    chart.legend("ceiling", "s3")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _listed(rows: Sequence[_Row]) -> str:
    return "; ".join(f"{name} {in_words(score)}" for name, _, score in rows)


def _explanations_and_steering(data: RunData) -> Iterator[Figure]:
    """Draw the specificity of latents' explanations against the success of steering with them."""
    success = _column(data, "steer_success")
    column, words = _interpretability(data, np.isfinite(success))
    score = _column(data, column)
    chosen = np.flatnonzero(np.isfinite(score) & np.isfinite(success))
    if not len(chosen):
        return
    chart = Chart(
        covering(score[chosen].tolist(), zero=False),
        covering(success[chosen].tolist()),
        words,
        "share of steered texts that succeed",
    )
    control = _column(data, "steer_success_control")
    groups = data.features.get("group")
    for place in chosen.tolist():
        seed, latent = (data.features[name][place] for name in ("seed", "feature"))
        group = "" if groups is None else groups[place]
        hover = (
            f"{seed}:{latent} {group}: {words} {score[place]:.3f}, success {success[place]:.3f}, "
            f"in the direction of another feature {number(control[place])}"
        )
        chart.point(score[place], success[place], GROUP_COLOURS.get(group, "s2"), hover, mark=place)
    for name, colour in GROUP_COLOURS.items():
        chart.legend(name, colour)
    related = [
        f"{each.task} {each.value:.2f} ({interval(each)}, {each.n} features)"
        for each in correlations(data)
    ]
    reading = (
        f"Rank correlation with the gain from steering: {'; '.join(related)}."
        if related
        else f"{len(chosen)} features have both; their rank correlation was not computed."
    )
    members = np.full(len(score), -1)
    members[chosen] = chosen
    yield Figure(
        "explanations-steering",
        "Does a good explanation predict steering?",
        f"Features with an explanation and a steering experiment, by {words} and by the share of "
        "steered texts that show more of the explanation.",
        f"{len(chosen)} points, one for each feature.",
        chart.svg(),
        reading,
        members[data.living],
    )


def _interpretability(data: RunData, steered: NDArray[np.bool_]) -> tuple[str, str]:
    """Return the score of explanations that most steered features have: its column and words.

    Specificity is known only for features whose rule the judge could be asked about.
    """
    counts = [int((np.isfinite(_column(data, name)) & steered).sum()) for name in _SCORES]
    return list(_SCORES.items())[int(np.argmax(counts))]


def _column(data: RunData, name: str) -> NDArray[np.float64]:
    """Return a column of numbers, NaN where unknown."""
    values = data.features.get(name)
    count = len(data.features.get("feature", ()))
    return np.full(count, np.nan) if values is None else np.asarray(values, dtype=np.float64)
