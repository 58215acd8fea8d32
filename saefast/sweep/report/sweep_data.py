"""Cells, axes and measured values of a sweep, from its table of results."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from saefast.disk.tables import read_table
from saefast.report.scale import Scale, short
from saefast.sweep.folder import SweepFolder
from saefast.sweep.report.measures import Measure, measures_of

Row = dict[str, Any]

_LOG_FROM = 4.0
"""ratio of the largest and the smallest value of an axis from which its scale is logarithmic"""
_LOG_ALWAYS = ("tokens", "latents", "k")
_NORMAL = 1.959964
"""half the width of a 95 % interval in standard errors"""


@dataclass(frozen=True)
class Axis:
    """Axis of the grid with the values of its cells."""

    name: str
    """dotted setting, or name of sets"""
    values: tuple[Any, ...]
    """values, numbers in ascending order, others in the order of the grid"""

    @property
    def short(self) -> str:
        """Last part of the name."""
        return self.name.rpartition(".")[2]

    @cached_property
    def numeric(self) -> bool:
        """Whether values have places on a scale: positive numbers."""
        return all(_is_number(value) and value > 0 for value in self.values)

    @property
    def places(self) -> list[float]:
        """Coordinate of each value."""
        return [float(v) for v in (self.values if self.numeric else range(len(self.values)))]

    @property
    def names(self) -> list[str]:
        """Words for each value."""
        return [in_words(value) for value in self.values]

    @property
    def scale(self) -> Scale:
        """Scale of all values with a margin."""
        if not self.numeric:
            return Scale(-0.5, len(self.values) - 0.5)
        low, high = min(self.places), max(self.places)
        if self.short in _LOG_ALWAYS or high / low >= _LOG_FROM:
            margin = (high / low) ** 0.06
            return Scale(low / margin, high * margin, log=True)
        margin = 0.06 * (high - low)
        return Scale(low - margin, high + margin)


class Reading(NamedTuple):
    """Value of a measure in a cell."""

    value: float
    band: tuple[float, float] | None
    """lower and upper end of its band; None if unknown"""
    nulls: Mapping[str, float]
    """values of the nulls that are known, by column"""


@dataclass(frozen=True)
class CellRow:
    """Cell of a sweep with its rows of the table of results."""

    name: str
    at: tuple[int, ...]
    """index of the value on each axis"""
    row: Row
    """row of the cell; empty if the table has none"""
    saes: tuple[Row, ...]
    """rows of its SAEs"""

    @property
    def status(self) -> str:
        """Status: finished, failed or unfinished."""
        return str(self.row.get("status") or "unfinished")

    def reading(self, measure: Measure) -> Reading | None:
        """Return the value of a measure, its band and its nulls; None if it is not known."""
        value = _known(self.row.get(measure.column))
        if value is None:
            return None
        nulls = {name: _known(self.row.get(name)) for name in measure.nulls}
        known = {name: null for name, null in nulls.items() if null is not None}
        return Reading(value, self._band(measure, value), known)

    def _band(self, measure: Measure, value: float) -> tuple[float, float] | None:
        if measure.error:
            error = _known(self.row.get(measure.error))
            return None if error is None else (value - _NORMAL * error, value + _NORMAL * error)
        if measure.ends is not None:
            low, high = (_known(self.row.get(name)) for name in measure.ends)
            return None if low is None or high is None else (low, high)
        values = [_known(sae.get(measure.column)) for sae in self.saes]
        known = [each for each in values if each is not None]
        return (min(known), max(known)) if len(known) > 1 else None


@dataclass(frozen=True)
class SweepData:
    """Axes, cells and measures of a sweep."""

    name: str
    """name of the folder"""
    axes: tuple[Axis, ...]
    """axes in the order of the file"""
    cells: tuple[CellRow, ...]
    """cells in the order of the grid"""
    measures: tuple[Measure, ...]
    """measures that are known in one cell at least"""

    @property
    def varied(self) -> list[int]:
        """Indices of the axes with several values."""
        return [number for number, axis in enumerate(self.axes) if len(axis.values) > 1]

    def readings(self, measure: Measure) -> list[tuple[CellRow, Reading]]:
        """Return the cells in which a measure is known, with its values."""
        return self._readings[measure.column]

    @cached_property
    def _readings(self) -> dict[str, list[tuple[CellRow, Reading]]]:
        return {
            measure.column: [
                (cell, reading)
                for cell in self.cells
                if (reading := cell.reading(measure)) is not None
            ]
            for measure in self.measures
        }

    def of_cells(self, column: str) -> list[Any]:
        """Return the different known values of a column of the cells, in their order."""
        values = [cell.row.get(column) for cell in self.cells]
        return list(dict.fromkeys(value for value in values if value is not None))


def read_sweep_data(folder: SweepFolder) -> SweepData:
    """Read sweep.json and results.parquet of a sweep.

    Args:
        folder: folder of the sweep.

    Returns:
        Their content. Axes and cells are those of sweep.json.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    record = folder.read()
    table = read_table(folder.results)
    if table is None:
        raise FileNotFoundError(
            f"{folder.root} has no {folder.results.name}; saefast report {folder.root} makes it"
        )
    whole: dict[str, Row] = {}
    saes: dict[str, list[Row]] = {}
    for row in table.to_pylist():
        if row["level"] == "cell":
            whole[row["cell"]] = row
        else:
            saes.setdefault(row["cell"], []).append(row)
    axes = tuple(
        Axis(name, _ordered([at[name] for at in record.cells.values()])) for name in record.axes
    )
    numbers = [{_key(value): number for number, value in enumerate(axis.values)} for axis in axes]
    cells = tuple(
        CellRow(
            name,
            tuple(of[_key(at[axis.name])] for axis, of in zip(axes, numbers, strict=True)),
            whole.get(name, {}),
            tuple(saes.get(name, ())),
        )
        for name, at in record.cells.items()
    )
    measures = tuple(
        measure
        for measure in measures_of(table.column_names)
        if any(_known(cell.row.get(measure.column)) is not None for cell in cells)
    )
    return SweepData(folder.root.resolve().name, axes, cells, measures)


def _ordered(values: list[Any]) -> tuple[Any, ...]:
    different = list({_key(value): value for value in values}.values())
    return tuple(sorted(different) if all(map(_is_number, different)) else different)


def _key(value: Any) -> str:
    """Return a key of a value on an axis; those of True and 1 differ, those of 1 and 1.0 do not."""
    return repr(float(value)) if _is_number(value) else json.dumps(value, sort_keys=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_words(value: Any) -> str:
    """Format a value of a setting."""
    if isinstance(value, str):
        return value or '""'
    if not _is_number(value):
        return json.dumps(value)
    if float(value).is_integer() and (abs(value) < 10_000 or value % 1000):
        return f"{int(value):,}"
    return short(value)


def _known(value: Any) -> float | None:
    return float(value) if _is_number(value) and math.isfinite(value) else None
