"""Texts of the report of a sweep: its facts, alternative texts and notes of figures."""

from collections.abc import Collection

from saefast.sweep.report.curves import Curve
from saefast.sweep.report.sweep_data import Axis, SweepData, in_words

_SETTINGS = {
    "source": "rows from",
    "model": "model",
    "site": "site",
    "variant": "variant",
    "latents": "latents",
    "k": "k",
    "seeds": "SAEs per cell",
    "tokens": "training rows",
    "batch_size": "batch size",
    "lr": "learning rate",
    "data_seed": "data seed",
    "precision": "precision",
}
_MOST_VALUES = 12


def facts_of_sweep(data: SweepData) -> list[tuple[str, str]]:
    """Return names and values of the facts about the sweep as a whole."""
    counts = [
        (status, sum(cell.status == status for cell in data.cells))
        for status in ("finished", "failed", "unfinished")
    ]
    saes = sum(len(cell.saes) for cell in data.cells)
    listed = ", ".join(f"{count:,} {status}" for status, count in counts if count)
    found = [("Cells", f"{len(data.cells):,}: {listed}" if data.cells else "0")]
    if saes:
        found.append(("SAEs", f"{saes:,}"))
    found += [(axis.name, _values(axis)) for axis in data.axes]
    same = [
        f"{words} {in_words(values[0])}"
        for column, words in _SETTINGS.items()
        if len(values := data.of_cells(column)) == 1
        and not any(axis.short == column and len(axis.values) > 1 for axis in data.axes)
    ]
    if same:
        found.append(("In all cells", ", ".join(same)))
    seconds = [cell.row["seconds"] for cell in data.cells if cell.row.get("seconds")]
    if seconds:
        found.append(("Time", f"{_duration(sum(seconds))} of all stages of all cells"))
    found.append(("Machines", ", ".join(map(str, data.of_cells("machine")))))
    found.append(("Devices", ", ".join(map(str, data.of_cells("device")))))
    versions = [f"{of} {each}" for of in ("torch", "commit") for each in data.of_cells(of)]
    found.append(("Versions", ", ".join(versions)))
    return [(words, value) for words, value in found if value]


def alternative(axis: Axis, curves: Collection[Curve], by: Axis | None) -> str:
    """Describe a chart in words, for screen readers."""
    if by is not None:
        return f"A line for each of {len(by.values)} values of {by.name}."
    points = [point for curve in curves for point in curve.points]
    listed = [f"{point.reading.value:.3g} at {axis.names[point.place]}" for point in points]
    return f"Means: {', '.join(listed)}."


def note_on(curves: Collection[Curve]) -> str:
    """Return a warning for means that are not over the same settings; empty if all are."""
    if all(curve.alike for curve in curves):
        return ""
    return (
        "No combination of the other settings has a value everywhere: means at different places "
        "are over different settings."
    )


def _values(axis: Axis) -> str:
    names = axis.names
    if len(names) <= _MOST_VALUES:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_VALUES])} and {len(names) - _MOST_VALUES} more"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
