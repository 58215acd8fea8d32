"""Means of a measure over the cells with one value on an axis, compared like with like."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from saefast.sweep.report.measures import Measure
from saefast.sweep.report.sweep_data import CellRow, Reading, SweepData

Known = tuple[CellRow, Reading]


class Point(NamedTuple):
    """Mean over the cells with one value on an axis."""

    place: int
    """index of the value"""
    reading: Reading
    """means of the values and of the ends of their bands"""
    cells: tuple[CellRow, ...]
    """cells that were averaged"""


class Curve(NamedTuple):
    """Means for each value on an axis."""

    points: tuple[Point, ...]
    alike: bool
    """whether all points are means over the same combinations of the other settings"""


class NullPoint(NamedTuple):
    """Values of a null in the cells with one value on an axis."""

    place: int
    mean: float
    least: float
    most: float


def curves_over(data: SweepData, measure: Measure, axis: int, by: int | None) -> dict[int, Curve]:
    """Return the curves of a measure over an axis.

    A cell that failed or was excluded must not shift a mean, so a curve averages over those
    combinations of the other settings whose measure is known at all its points. Without any, it
    averages over all cells.

    Args:
        data: the sweep.
        measure: the measure.
        axis: index of the axis.
        by: index of the axis with a curve for each value; None: one curve for all cells.

    Returns:
        Curves by the index of the value on the axis `by`; 0 if that is None.
    """
    lines: dict[int, list[Known]] = {}
    for known in data.readings(measure):
        lines.setdefault(0 if by is None else known[0].at[by], []).append(known)
    return {line: _curve(lines[line], axis, by) for line in sorted(lines)}


def null_over(data: SweepData, measure: Measure, axis: int, null: str) -> list[NullPoint]:
    """Return the mean and the range of a null for each value on an axis at which it is known."""
    found: dict[int, list[float]] = {}
    for cell, reading in data.readings(measure):
        if null in reading.nulls:
            found.setdefault(cell.at[axis], []).append(reading.nulls[null])
    return [
        NullPoint(place, fmean(values), min(values), max(values))
        for place, values in sorted(found.items())
    ]


def _curve(known: list[Known], axis: int, by: int | None) -> Curve:
    others: dict[int, dict[tuple[int, ...], Known]] = {}
    for cell, reading in known:
        rest = tuple(place for number, place in enumerate(cell.at) if number not in (axis, by))
        others.setdefault(cell.at[axis], {})[rest] = (cell, reading)
    common = set.intersection(*map(set, others.values()))
    points = [
        _point(place, [each for rest, each in cells.items() if rest in common or not common])
        for place, cells in sorted(others.items())
    ]
    return Curve(tuple(points), bool(common))


def _point(place: int, known: list[Known]) -> Point:
    readings = [reading for _, reading in known]
    names = dict.fromkeys(name for reading in readings for name in reading.nulls)
    mean = Reading(
        fmean(reading.value for reading in readings),
        _mean_band([reading.band for reading in readings]),
        {name: fmean(r.nulls[name] for r in readings if name in r.nulls) for name in names},
    )
    return Point(place, mean, tuple(cell for cell, _ in known))


def _mean_band(bands: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Return the means of the ends of bands; None if one is unknown."""
    known = [band for band in bands if band is not None]
    if len(known) < len(bands):
        return None
    return fmean(low for low, _ in known), fmean(high for _, high in known)
