"""Tables of a sweep: measured on one machine, and the model of many."""

from typing import Any

from bench.committed import load, markdown
from bench.shapes import Shape
from bench.sweep_model import CELLS, HARVEST, LATER, STORES, STREAMS, TRAINING


def measured() -> str:
    """Return the time of a sweep and of its stages, by the number of processes."""
    rows = [row for row in load("sweep")["rows"] if "train_ms" in row]
    lines = [["", "sweep", "harvest", "train", "later stages", "overhead per cell"]]
    lines[0] += ["not training", "same bits"]
    lines.append(["---"] + ["---:"] * 7)
    for row in rows:
        times = [_seconds(row[f"{name}ms"]) for name in ("", "harvest_", "train_", "later_")]
        overhead = f"{row['overhead_ms_per_cell']:.0f} ms"
        share, same = f"{100 * row['not_training']:.0f} %", "yes" if row["agrees"] else "**no**"
        lines.append([row["mode"], *times, overhead, share, same])
    return markdown(lines)


def measured_caption() -> str:
    """Return the caption of the measured table, with the parts of the overhead."""
    result = load("sweep")
    machine, rows = result["machine"], result["rows"]
    parts = next(row for row in rows if row["mode"] == "parts")
    return (
        f"Measured: {rows[0]['cells']} cells of two SAEs, up to (d, m, k, n) = "
        f"{Shape(**rows[0]['shape']).text}, on synthetic rows, up to the stage stability. Stages "
        f"are summed over cells; the overhead is all other time of all processes, also that in "
        f"which they wait. A worker needs {parts['start_ms'] / 1e3:.1f} s to start and "
        f"{parts['task_ms']:.0f} ms for a task beside its stages, the driver "
        f"{parts['driver_ms']:.1f} ms for a task, table and report {parts['table_ms']:.0f} ms and "
        f"{parts['table_per_cell_ms']:.1f} ms for each cell. {machine['cpu']}, {machine['cores']} "
        f"cores, torch {machine['versions']['torch']}, commit {result['commit']}."
    )


def model() -> str:
    """Return the modelled time of a sweep on many machines."""
    rows = [row for row in load("sweep")["rows"] if row["rival"] == "model"]
    names = {"ray": "Ray, one driver", "share": "fixed shares"}
    lines = [["machines", *(name for way in names.values() for name in (way, "", ""))]]
    lines.append(["---:"] * 7)
    lines.append(["", *["hours", "training", "table and report"] * 2])
    for machines in dict.fromkeys(row["machines"] for row in rows):
        cells = [
            text
            for way in names
            for row in rows
            if (row["mode"], row["machines"]) == (way, machines)
            for text in _modelled(row)
        ]
        lines.append([f"{machines:,}", *cells])
    return markdown(lines)


def model_caption() -> str:
    """Return the caption of the model."""
    return (
        f"A model, not measured, from the costs above: {CELLS:,} cells on {STREAMS} sites of "
        f"{STORES} models. Assumed: {TRAINING / 60:.0f} minutes of training for a cell on average, "
        f"in three sizes of 1 : 2 : 4, {HARVEST / 60:.0f} minutes for a harvest, and later stages "
        f"that take {100 * LATER:.0f} % of the training; machines are alike, do not fail, and "
        f"read rows at the speed of one machine. Training: its share of the time of all machines. "
        f"Table and report: time after the last cell."
    )


def _seconds(ms: float) -> str:
    return f"{ms / 1e3:.1f} s"


def _modelled(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['hours']:.2f}",
        f"{100 * row['training_share']:.0f} %",
        f"{row['table_minutes']:.1f} min",
    ]
