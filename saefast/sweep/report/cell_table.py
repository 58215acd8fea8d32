"""Table of the cells of a sweep, for filtering and sorting."""

from collections.abc import Sequence
from typing import Any

from saefast.report.document import chooser, heading, packed_rows, paged_table
from saefast.sweep.folder import RESULTS
from saefast.sweep.report.multiples import link_of
from saefast.sweep.report.sweep_data import CellRow, SweepData

_STATUS = ("finished", "failed", "unfinished")
_MOST_CHOICES = 50
"""number of values up to which an axis has a filter"""


def cell_table(data: SweepData) -> str:
    """Return the table with its rows packed, which sweep.js draws."""
    heads = [
        heading("cell", "cell", "name; opens the report of the cell"),
        heading("status", "status"),
        *(heading(f"axis-{n}", data.axes[n].short, data.axes[n].name) for n in data.varied),
        *(
            heading(f"measure-{n}", measure.title, f"{measure.about} Small: {measure.band}.")
            for n, measure in enumerate(data.measures)
        ),
        heading("seconds", "seconds", "seconds of all stages"),
    ]
    filters = [
        chooser("Status", "status", _STATUS),
        *(
            chooser(data.axes[n].short, f"axis-{n}", data.axes[n].names)
            for n in data.varied
            if len(data.axes[n].values) <= _MOST_CHOICES
        ),
    ]
    return (
        "<p>Search for a part of a name or reason; click a heading to sort; open a cell to see its "
        "own report.</p>"
        f"{paged_table(''.join(heads), ''.join(filters), RESULTS)}"
        f"{packed_rows(cell_columns(data))}"
    )


def cell_columns(data: SweepData) -> dict[str, Any]:
    """Return the columns of the table of cells, with an entry for each cell.

    Returns:
        cell, link, status, reason and seconds; "axis-N", the index of the value on axis N, and
        "names-N", words for its values; "measure-N", value and band of a measure, or None.
    """
    cells = data.cells
    columns: dict[str, Any] = {
        "cell": [cell.name for cell in cells],
        "link": [link_of(cell) for cell in cells],
        "status": [cell.status for cell in cells],
        "reason": [str(cell.row.get("reason") or "") for cell in cells],
        "seconds": [
            None if (seconds := cell.row.get("seconds")) is None else round(seconds, 1)
            for cell in cells
        ],
    }
    for number in data.varied:
        columns[f"axis-{number}"] = [cell.at[number] for cell in cells]
        columns[f"names-{number}"] = data.axes[number].names
    for number, measure in enumerate(data.measures):
        readings = (cell.reading(measure) for cell in cells)
        columns[f"measure-{number}"] = [
            reading and [_rounded(each) for each in (reading.value, *(reading.band or ()))]
            for reading in readings
        ]
    return columns


def failed_cells(cells: Sequence[CellRow]) -> list[tuple[str, str]]:
    """Return the names and reasons of the failed cells."""
    return [
        (cell.name, str(cell.row.get("reason") or "no reason is known"))
        for cell in cells
        if cell.status == "failed"
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
