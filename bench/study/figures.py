"""Figures of docs/results/study, from the rows of `bench study`."""

from pathlib import Path
from typing import NamedTuple

from bench.committed import load
from bench.study.axes import along
from bench.study.rows import Row
from saefast.report.chart import Chart, standalone
from saefast.report.scale import covering


class Figure(NamedTuple):
    """Curves of measures along an axis of numbers."""

    title: str
    axis: str
    x_label: str
    y_label: str
    measures: dict[str, str]
    """words for each measure by its name"""


_RECURRENCE = {"shared": "shared pairs", "stable_share": "stable", "unstable_share": "unstable"}
_NULLS = {
    "unstable_beyond_covariance": "less covariance",
    "unstable_beyond_subset": "less random features",
}
_LEADS = {"stable_lead": "stable", "unstable_lead": "unstable"}

FIGURES = {
    "recurrence-tokens": Figure(
        "Features that recur, by length of training",
        *("tokens", "rows of training", "share of features", _RECURRENCE),
    ),
    "recurrence-latents": Figure(
        "Features that recur, by number of latents",
        *("latents", "latents", "share of features", _RECURRENCE),
    ),
    "recurrence-k": Figure(
        "Features that recur, by number of active latents",
        *("k", "active latents of a row", "share of features", _RECURRENCE),
    ),
    "subspaces-tokens": Figure(
        "Overlap of the subspaces of unstable features beyond nulls",
        *("tokens", "rows of training", "overlap minus the null's", _NULLS),
    ),
    "worth-tokens": Figure(
        "Variance explained by a group alone, less random features of equal mass",
        *("tokens", "rows of training", "explained variance", _LEADS),
    ),
}
"""Figures by the name of their file."""

_COLOURS = ("s0", "s1", "s3")
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "study"


def drawn() -> dict[str, str]:
    """Return the figures as SVG files by name; those with less than two cells are left out."""
    rows: list[Row] = load("study")["rows"]
    found = {}
    for name, figure in FIGURES.items():
        mine = along(rows, figure.axis)
        if len(mine) > 1:
            found[name] = standalone(_chart(figure, mine), figure.title)
    return found


def write(folder: Path = FOLDER) -> None:
    """Write all figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn().items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def _chart(figure: Figure, rows: list[Row]) -> str:
    xs = [float(row[figure.axis]) for row in rows]
    values = [
        value for row in rows for name in figure.measures for value in row["measures"].get(name, [])
    ]
    y = covering([value for value in values if value is not None])
    names = [f"{x / 1e6:g} M" if x >= 1e5 else f"{x:g}" for x in xs]
    chart = Chart(
        covering(xs, log=True), y, figure.x_label, figure.y_label, x_names=names, x_marks=xs
    )
    for colour, (name, words) in zip(_COLOURS, figure.measures.items(), strict=False):
        values = [row["measures"].get(name, [None] * 3) for row in rows]
        chart.line(xs, [value for value, _, _ in values], colour)
        for x, (value, low, high) in zip(xs, values, strict=True):
            if value is not None:
                chart.point(x, value, colour, radius=3.5)
            if low is not None and high is not None:
                chart.whisker(x, low, high)
        chart.legend(words, colour, "l")
    if y.low < 0:
        chart.rule(y=0.0)
    return chart.svg()
