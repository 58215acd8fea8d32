"""Plan of a sweep: number of cells, time, disk space and memory, from measured speeds."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from saefast.pipeline.together import stream_key
from saefast.sweep.definition import Cell, Sweep
from saefast.sweep.divided_harvest import divided_harvests
from saefast.sweep.driver import cells_of
from saefast.sweep.folder import SweepFolder
from saefast.sweep.speeds import Speeds
from saefast.sweep.tasks import Schedule, Task, divided, training_bytes
from saefast.sweep.workers import local_workers
from saefast.train.planning.memory import PROCESS_BYTES


@dataclass(frozen=True)
class CellPlan:
    """Cost of one cell."""

    cell: str
    """name of the cell"""
    seconds: float
    """time of one worker, without the harvest"""
    disk: int
    """bytes of its folder"""


@dataclass(frozen=True)
class SweepPlan:
    """Remaining work of a sweep, or of a share of it, with its cost."""

    cells: int
    """number of cells in the sweep or share"""
    finished: int
    """number of cells that are finished"""
    saes: int
    """number of SAEs to be trained"""
    stores: int
    """number of stores to be written, each by one pass of a model or another source of rows"""
    streams: int
    """number of passes over rows that trainings share, if one worker trains all"""
    workers: int
    """number of worker processes"""
    harvest_hours: float
    """time of all harvests by one worker"""
    train_hours: float
    """time of all trainings by one worker"""
    later_hours: float
    """time of the stages after the training by one worker, without subspace and evaluations by
    name"""
    hours: float
    """wall time with all workers"""
    disk: int
    """bytes to be written"""
    memory: int
    """bytes of the workers when the largest trainings run at the same time"""
    free_memory: int | None
    """bytes of free memory; None if they are unknown"""
    changed: tuple[str, ...]
    """names of cells that were begun with other settings"""
    each: tuple[CellPlan, ...]
    """cost of each unfinished cell"""

    def as_text(self) -> str:
        """Return the plan as text."""
        free = "" if self.free_memory is None else f" ({_size(self.free_memory)} free)"
        lines = [
            f"{self.cells} cells, {self.finished} of them finished; {self.saes} SAEs to train on "
            f"{self.streams} stream{'s' * (self.streams != 1)} of rows from {self.stores} "
            f"store{'s' * (self.stores != 1)}",
            f"{_time(self.hours)} with {self.workers} worker{'s' * (self.workers != 1)}; work of "
            f"one: harvest {_time(self.harvest_hours)}, train {_time(self.train_hours)}, later "
            f"stages about {_time(self.later_hours)} (without subspace and evaluations by name)",
            f"{_size(self.disk)} of disk, {_size(self.memory)} of memory{free}",
        ]
        if self.changed:
            lines.append(
                f"started with other settings, so --remake is needed: {', '.join(self.changed)}"
            )
        return "\n".join(lines)


def plan_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    until: str = "report",
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> SweepPlan:
    """Estimate the time, disk space and memory of a sweep, without writing into `out`.

    For each kind of cell a few rows are harvested and a few steps are trained, with the number of
    threads of a worker. Two dictionaries are compared with at most 2,048 features; the time for
    larger ones is extrapolated by the square of their size.

    Args:
        sweep: the sweep.
        out: folder of the sweep; cells that are finished there are not counted as work.
        until: last stage of every cell.
        processes: number of worker processes; None: as for `run_sweep`.
        share: number of a share, starting at 1, and number of shares; None: all cells.
        tell: function that is called with a line of text when a measurement begins.

    Returns:
        The plan; `as_text()` formats it.
    """
    folder = SweepFolder(Path(out))
    cells = cells_of(sweep, share)
    schedule = Schedule(folder, cells, until)
    schedule.check(here=True)
    tasks = schedule.first()
    left = [cell for cell in cells if any(cell.name in task.cells for task in tasks)]
    workers, threads, free = local_workers(processes, max(len(left), 1))
    with tempfile.TemporaryDirectory() as scratch, _Threads(threads):
        speeds = Speeds(Path(scratch), tell)
        harvests = _of_kind(tasks, "harvest")
        shared = divided_harvests(tasks, workers)
        apart = [task for task in harvests if task not in shared]
        by_all, by_one = (
            sum(speeds.harvest(group) for group in _cells_of_tasks(some, left))
            for some in (shared, apart)
        )
        disk = sum(speeds.store_bytes(group) for group in _cells_of_tasks(harvests, left))
        trained = {name for task in _of_kind(tasks, "stages") for name in task.cells}
        each, train, later = [], 0.0, 0.0
        for cell in left:
            training = 0.0 if cell.name in trained else speeds.train(cell)
            after = speeds.later(cell, until)
            train, later = train + training, later + after
            each.append(CellPlan(cell.name, training + after, speeds.cell_bytes(cell)))
        untrained = [cell for cell in left if cell.name not in trained]
        streams = {stream_key(cell.settings) for cell in untrained}
        groups = [
            sum(training_bytes(cell.settings, speeds.width(cell)) for cell in group)
            for stream in streams
            for mine in [[cell for cell in untrained if stream_key(cell.settings) == stream]]
            for group in divided(
                mine, -(-workers // len(streams)), free and free // workers, speeds.width(mine[0])
            )
        ]
    stores = len(harvests)
    return SweepPlan(
        cells=len(cells),
        finished=len(cells) - len(left),
        saes=sum(len(cell.settings.train.seeds) for cell in untrained),
        stores=stores,
        streams=len(streams),
        workers=workers,
        harvest_hours=(by_all + by_one) / 3600,
        train_hours=train / 3600,
        later_hours=later / 3600,
        hours=(by_one / max(min(workers, len(apart)), 1) + (by_all + train + later) / workers)
        / 3600,
        disk=disk + sum(one.disk for one in each),
        memory=sum(sorted(groups)[-workers:]) + workers * PROCESS_BYTES,
        free_memory=free,
        changed=tuple(one.cell for one in folder.changed(replace(sweep, cells=tuple(cells)))),
        each=tuple(each),
    )


class _Threads:
    """Context manager that sets the number of threads of torch."""

    def __init__(self, number: int) -> None:
        self._number, self._before = number, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._number)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _of_kind(tasks: Sequence[Task], kind: str) -> list[Task]:
    return [task for task in tasks if task.kind == kind]


def _cells_of_tasks(tasks: Sequence[Task], cells: Sequence[Cell]) -> list[list[Cell]]:
    return [[cell for cell in cells if cell.name in task.cells] for task in tasks]


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} KB"
