"""Small charts of a measure over each axis of the grid, with the same y axis."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from urllib.parse import quote

from saefast.report.chart import Chart
from saefast.report.scale import Scale, covering
from saefast.run_folder import REPORT
from saefast.sweep.folder import CELLS
from saefast.sweep.report.curves import Curve, NullPoint, Point
from saefast.sweep.report.measures import Measure
from saefast.sweep.report.sweep_data import Axis, CellRow, Reading, SweepData

COLOURS = ("s0", "s1", "s3", "s4", "s5")
"""Colours of lines; each may be solid or dashed"""
MOST_LINES = 2 * len(COLOURS)
NULL = "s2"
"""Colour of nulls"""
_WIDTH, _HEIGHT, _LEFT, _TOP = 340, 220, 46, 12
_MOST_DOTS = 300
"""number of cells up to which each of them is drawn"""
_GROUP = 0.56
"""width of the points of all lines at a category"""
_NULL_WIDTH = 0.4
"""half the width of a null at a category"""


def link_of(cell: CellRow) -> str:
    """Return the address of a cell's report relative to the sweep's report; empty if none."""
    return f"{CELLS}/{quote(cell.name)}/{REPORT}" if cell.row.get("report") else ""


def line_values(axis: Axis) -> list[int]:
    """Return the indices of the values that have a line: all, or some at equal distances."""
    count = len(axis.values)
    if count <= MOST_LINES:
        return list(range(count))
    return [round(n * (count - 1) / (MOST_LINES - 1)) for n in range(MOST_LINES)]


def style_of(line: int) -> tuple[str, bool]:
    """Return the colour of a line, and whether it is dashed."""
    return COLOURS[line % len(COLOURS)], line >= len(COLOURS)


def scale_of(data: SweepData, measure: Measure) -> Scale:
    """Return a y axis for all values, bands and nulls of a measure."""
    values: list[float] = []
    for _, reading in data.readings(measure):
        values += [reading.value, *(reading.band or ()), *reading.nulls.values()]
    return covering(values, zero=measure.from_zero)


def chart_of(
    data: SweepData,
    measure: Measure,
    axis: int,
    by: int | None,
    y: Scale,
    curves: Mapping[int, Curve],
    nulls: Mapping[str, Sequence[NullPoint]],
) -> str:
    """Draw a measure over an axis.

    Args:
        data: the sweep.
        measure: the measure.
        axis: index of the axis.
        by: index of the axis with a line for each value; None: one line for all cells.
        y: scale of the y axis.
        curves: curves from `curves_over`.
        nulls: points from `null_over` for each null.

    Returns:
        SVG element.
    """
    of = data.axes[axis]
    chart = Chart(
        of.scale,
        y,
        of.name,
        "",
        x_names=of.names,
        x_marks=of.places,
        left=_LEFT,
        width=_WIDTH,
        height=_HEIGHT,
        top=_TOP,
    )
    for column, points in nulls.items():
        _draw_null(chart, of, points, measure.nulls[column], shaded=len(nulls) == 1)
    if by is None:
        _draw_cells(chart, data, measure, axis, curves[0])
    drawn = [0] if by is None else line_values(data.axes[by])
    for line, value in enumerate(drawn):
        if value in curves:
            name = "" if by is None else f"{data.axes[by].short} = {data.axes[by].names[value]}"
            shift = 0.0 if of.numeric else _GROUP * ((line + 0.5) / len(drawn) - 0.5)
            _draw_curve(chart, of, curves[value], line, name, shift)
    return chart.svg()


def in_words(reading: Reading) -> str:
    """Format a value with its band."""
    band = " ({:.4g} to {:.4g})".format(*reading.band) if reading.band else ""
    return f"{reading.value:.4g}{band}"


def _draw_null(
    chart: Chart, axis: Axis, points: Sequence[NullPoint], words: str, shaded: bool
) -> None:
    places = [axis.places[point.place] for point in points]
    if axis.numeric:
        if shaded:
            least, most = [p.least for p in points], [p.most for p in points]
            chart.band(places, least, most, NULL)
        chart.line(places, [point.mean for point in points], NULL, dashed=True)
    for place, point in zip(places, points, strict=True):
        hover = f"{words}: {point.mean:.4g}"
        if point.least < point.most:
            hover += f" ({point.least:.4g} to {point.most:.4g})"
        if axis.numeric:
            chart.point(place, point.mean, NULL, hover, radius=2.5)
            continue
        left, right = place - _NULL_WIDTH, place + _NULL_WIDTH
        if shaded:
            chart.cell(left, right, point.least, point.most, NULL, 0.18, hover)
        chart.line([left, right], [point.mean, point.mean], NULL, dashed=True)
        chart.point(place, point.mean, NULL, hover, radius=2.5)


def _draw_cells(chart: Chart, data: SweepData, measure: Measure, axis: int, curve: Curve) -> None:
    """Draw the cells that means are over, unless they are too many."""
    if len(data.cells) > _MOST_DOTS or all(len(point.cells) == 1 for point in curve.points):
        return
    for cell, reading in data.readings(measure):
        x = data.axes[axis].places[cell.at[axis]]
        hover = f"{cell.name}: {in_words(reading)}"
        chart.point(x, reading.value, "s0 faint", hover, radius=2.6, link=link_of(cell))


def _draw_curve(chart: Chart, axis: Axis, curve: Curve, line: int, name: str, shift: float) -> None:
    colour, dashed = style_of(line)
    for banded, run in groupby(curve.points, key=lambda point: point.reading.band is not None):
        if not banded:
            continue
        points = list(run)
        places = [axis.places[point.place] + shift for point in points]
        bands = [point.reading.band for point in points if point.reading.band is not None]
        if axis.numeric and len(points) > 1:
            chart.band(places, [low for low, _ in bands], [high for _, high in bands], colour)
        else:
            for x, (low, high) in zip(places, bands, strict=True):
                chart.whisker(x, low, high)
    xs = [axis.places[point.place] + shift for point in curve.points]
    chart.line(xs, [point.reading.value for point in curve.points], colour, dashed)
    for x, point in zip(xs, curve.points, strict=True):
        link = link_of(point.cells[0]) if len(point.cells) == 1 else ""
        hover = _hover_of_point(axis, point, name)
        chart.point(x, point.reading.value, colour, hover, radius=4, link=link)


def _hover_of_point(axis: Axis, point: Point, name: str) -> str:
    where = ", ".join(filter(None, [f"{axis.short} = {axis.names[point.place]}", name]))
    count = len(point.cells)
    which = point.cells[0].name if count == 1 else f"mean over {count} cells"
    return f"{where}: {in_words(point.reading)}; {which}"
