"""HTML page of the report of a sweep."""

from html import escape

from saefast.report.document import Section, asset, document, facts, named
from saefast.report.scale import Scale
from saefast.sweep.report.cell_table import cell_table, failed_cells
from saefast.sweep.report.choices import choices, choices_style, versions_of
from saefast.sweep.report.curves import curves_over, null_over
from saefast.sweep.report.measures import Measure
from saefast.sweep.report.multiples import chart_of, scale_of
from saefast.sweep.report.sweep_data import SweepData
from saefast.sweep.report.words import alternative, facts_of_sweep, note_on

_HERE = "saefast.sweep.report"
_FAILURES_SHOWN = 20
_NO_FIGURES = (
    "There are no figures yet: they need a measure that is known in a cell, and an axis with "
    "several values."
)


def page(data: SweepData) -> str:
    """Return the HTML of the report of a sweep.

    Args:
        data: the sweep.

    Returns:
        HTML document.
    """
    failed = failed_cells(data.cells)
    sections = [Section("The sweep", "sweep", facts(facts_of_sweep(data)))]
    if failed:
        sections.append(Section("Failed cells", "failed", _failures(failed)))
    sections.append(Section("Figures", "figures", _figures(data)))
    if data.cells:
        sections.append(Section("All cells", "cells", cell_table(data)))
    style = asset("page.css") + asset("chart.css") + asset("sweep.css", _HERE)
    return document(
        f"Sweep {data.name}",
        sections,
        version=", ".join(map(str, data.of_cells("saefast"))),
        style=style + choices_style(len(data.varied) + 1),
        script=asset("table.js") + asset("sweep.js", _HERE) if data.cells else "",
        skip_to="content",
    )


def _failures(failed: list[tuple[str, str]]) -> str:
    items = [f"<li><strong>{escape(n)}</strong>: {escape(reason)}</li>" for n, reason in failed]
    more = items[_FAILURES_SHOWN:]
    rest = f"<details><summary>{len(more)} more</summary><ul>{''.join(more)}</ul></details>"
    return (
        "<p>Run the same command again to retry them.</p>"
        f"<ul>{''.join(items[:_FAILURES_SHOWN])}</ul>{rest if more else ''}"
    )


def _figures(data: SweepData) -> str:
    if not data.measures or not data.varied:
        return f"<p>{_NO_FIGURES}</p>"
    links, parts, section = [], [], ""
    for number, measure in enumerate(data.measures):
        links.append(f'<a href="#measure-{number}">{escape(measure.title)}</a>')
        if measure.section != section:
            section = measure.section
            parts.append(f"<h3>{escape(section)}</h3>")
        parts.append(_measure(data, number, measure))
    return f'<nav aria-label="Measures">{"".join(links)}</nav>{choices(data)}{"".join(parts)}'


def _measure(data: SweepData, number: int, measure: Measure) -> str:
    y = scale_of(data, measure)
    figures = "".join(_figure(data, number, measure, axis, y) for axis in data.varied)
    known = {name for _, reading in data.readings(measure) for name in reading.nulls}
    nulls = dict.fromkeys(words for name, words in measure.nulls.items() if name in known)
    beside = f" Null: {', '.join(nulls)}." if nulls else ""
    return (
        f'<div class="measure" id="measure-{number}"><h4>{escape(measure.title)}</h4>'
        f'<p class="note">{escape(measure.about)} Bands and whiskers: {escape(measure.band)}.'
        f'{escape(beside)}</p><div class="multiples">{figures}</div></div>'
    )


def _figure(data: SweepData, number: int, measure: Measure, axis: int, y: Scale) -> str:
    of = data.axes[axis]
    nulls = {column: null_over(data, measure, axis, column) for column in measure.nulls}
    drawn = []
    for by, classes in versions_of(data, axis):
        curves = curves_over(data, measure, axis, by)
        svg = chart_of(data, measure, axis, by, y, curves, nulls)
        words = alternative(of, curves.values(), None if by is None else data.axes[by])
        note = note_on(curves.values())
        caption = f'<p class="note">{escape(note)}</p>' if note else ""
        svg = named(svg, f"{measure.title} by {of.name}", words)
        drawn.append(f'<div class="{classes}">{svg}{caption}</div>')
    return f'<figure id="fig-{number}-{axis}">{"".join(drawn)}</figure>'
