"""sweep: time of a sweep beside the time of its trainings, and a model of many machines.

Rows of the rival "model" are computed, not measured: `bench.sweep_model` with the measured costs.
"""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import Shape
from bench.sweep_model import MACHINES, Costs, simulated
from saefast.disk.tables import read_json
from saefast.sweep import Sweep, SweepFolder, run_sweep, sweep_from, write_table_and_report
from saefast.sweep.tasks import HARVEST, Task
from saefast.sweep.workers import LocalWorkers

SHAPES = (Shape(256, 2048, 16, 1024),)
_PROCESSES = (1, 2)
_ROWS = 20_000
_UNTIL = "stability"
_FEW = 2


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time a sweep of eight cells on one and two processes, its parts, and a model of machines."""
    sweep = _sweep(shape)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            _measured(sweep, Path(scratch) / str(processes), processes) for processes in _PROCESSES
        ]
        costs = _costs(sweep, SweepFolder(Path(scratch) / "1"), rows[0], rounds)
    for row in rows:
        row["agrees"] = row["digest"] == rows[0]["digest"]
    rows = [{name: row[name] for name in row if name != "digest"} for row in rows]
    parts = {"rival": "saefast", "mode": "parts", "rounds": rounds, **_in_ms(costs)}
    models = [
        {"rival": "model", "mode": way, **simulated(machines, way, costs)}
        for way in ("ray", "share")
        for machines in MACHINES
    ]
    return [{"case": "sweep", "shape": shape._asdict(), **row} for row in (*rows, parts, *models)]


def _sweep(shape: Shape) -> Sweep:
    """Return eight cells of two SAEs each."""
    return sweep_from(
        {
            "base": "quick",
            "settings": {
                "planted.d": shape.d,
                "planted.stable": shape.d // 2,
                "planted.rows": _ROWS,
                "planted.held_out": _ROWS // 8,
                "train.tokens": _ROWS,
                "train.batch_size": shape.n,
                "train.seeds": [0, 1],
            },
            "grid": {
                "train.latents": [shape.m // 2, shape.m],
                "train.k": [shape.k // 2, shape.k],
                "train.variant": ["topk", "batchtopk"],
            },
        },
        Path(),
    )


def _measured(sweep: Sweep, out: Path, processes: int) -> dict[str, Any]:
    """Run the sweep and return its time, and the time of the stages of its cells."""
    tasks: list[str] = []
    begun, driver = time.perf_counter(), time.process_time()
    outcome = run_sweep(sweep, out, until=_UNTIL, processes=processes, tell=tasks.append)
    wall, driver = time.perf_counter() - begun, time.process_time() - driver
    if outcome.failed:
        raise RuntimeError(f"cells failed: {outcome.failed}")
    folder = SweepFolder(out)
    stages: dict[str, float] = {}
    digest = hashlib.sha256()
    for cell in sweep.cells:
        run = folder.cell(cell.name)
        for name, its in (read_json(run / "stages.json") or {}).items():
            stages[name] = stages.get(name, 0.0) + its["seconds"]
        for weights in sorted(run.glob("seed-*/sae_weights.safetensors")):
            digest.update(weights.read_bytes())
    harvest, train = stages.pop("harvest"), stages.pop("train")
    later = sum(stages.values())
    worked = processes * wall
    return {
        "rival": "saefast",
        "mode": f"{processes} process{'es' * (processes > 1)}",
        "agrees": True,
        "cells": len(sweep.cells),
        "tasks": len(tasks),
        "driver_ms": round(driver * 1e3, 1),
        "ms": round(wall * 1e3, 1),
        "harvest_ms": round(harvest * 1e3, 1),
        "train_ms": round(train * 1e3, 1),
        "later_ms": round(later * 1e3, 1),
        "overhead_ms_per_cell": round(
            (worked - harvest - train - later) / len(sweep.cells) * 1e3, 1
        ),
        "not_training": round(1 - train / worked, 4),
        "digest": digest.hexdigest(),
    }


def _costs(sweep: Sweep, folder: SweepFolder, row: dict[str, Any], rounds: int) -> Costs:
    """Measure the parts of the overhead on a finished sweep.

    Args:
        sweep: the sweep.
        folder: its folder.
        row: result of `_measured` for one process.
        rounds: number of tasks without work, whose median time is not part of the start.

    Returns:
        Seconds of each part.
    """
    cell = sweep.cells[0]
    task = Task(HARVEST, str(folder.root), _UNTIL, (cell.name,), (cell.settings.to_dict(),), (0,))
    workers: LocalWorkers[Task] = LocalWorkers(1, 1)
    with workers:
        first, *others = [_seconds(_performed, workers, task) for _ in range(rounds + 1)]
    begun = time.process_time()
    run_sweep(sweep, folder.root, until=_UNTIL, processes=1)
    again = time.process_time() - begun  # of a driver without tasks
    tables = {}
    for cells in (_FEW, len(sweep.cells)):
        folder.write(dataclasses.replace(sweep, cells=sweep.cells[:cells]), _UNTIL)
        tables[cells] = min(_seconds(write_table_and_report, folder) for _ in range(3))
    more = len(sweep.cells) - _FEW
    per_cell = (tables[len(sweep.cells)] - tables[_FEW]) / more
    start = first - sorted(others)[rounds // 2]
    # Time of a process beside stages, start and table: files of a cell, its intervals, waiting.
    overhead = row["overhead_ms_per_cell"] * row["cells"] / 1e3
    return Costs(
        start=start,
        task=max(overhead - start - tables[len(sweep.cells)], 0.0) / row["tasks"],
        driver=max(row["driver_ms"] / 1e3 - again, 0.0) / row["tasks"],
        table=tables[_FEW] - _FEW * per_cell,
        table_per_cell=per_cell,
    )


def _seconds(work: Callable[..., object], *arguments: Any) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun


def _in_ms(costs: Costs) -> dict[str, float]:
    """Return the fields of a row for the costs."""
    return {f"{name}_ms": round(1e3 * its, 3) for name, its in costs._asdict().items()}


def _performed(workers: LocalWorkers[Task], task: Task) -> None:
    workers.start(task)
    answer = workers.wait()
    if answer.reason is not None:
        raise RuntimeError(answer.reason)
