"""The plan of a sweep: cells, hours, disk and memory, from speeds measured now."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saefast.pipeline.together import stream_key
from saefast.sweep.definition import Cell, Sweep
from saefast.sweep.driver import cells_of
from saefast.sweep.folder import SweepFolder
from saefast.sweep.speeds import Speeds
from saefast.sweep.tasks import PROCESS_BYTES, Schedule, Task, divided, training_bytes
from saefast.sweep.workers import local_workers


@dataclass(frozen=True)
class CellPlan:
    """What one cell takes."""

    cell: str
    seconds: float
    """of one worker"""
    disk: int
    """bytes of its folder"""


@dataclass(frozen=True)
class SweepPlan:
    """Work of a sweep, or of a share of it, that remains, with its estimated cost."""

    cells: int
    finished: int
    saes: int
    """to be trained"""
    stores: int
    """passes of a model, or of another source of rows"""
    streams: int
    """passes over rows that trainings share, if one worker trains all"""
    workers: int
    harvest_hours: float
    train_hours: float
    later_hours: float
    """of the stages after the training, but subspace and evaluations by name"""
    hours: float
    """wall time with all workers"""
    disk: int
    """bytes to be written"""
    memory: int
    """bytes of the workers, when the largest trainings run at once"""
    free_memory: int | None
    changed: tuple[str, ...]
    """cells that were begun with other settings"""
    each: tuple[CellPlan, ...]

    def as_text(self) -> str:
        """Return the plan for people."""
        free = "" if self.free_memory is None else f" of {_size(self.free_memory)} that are free"
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
                f"begun with other settings, so --remake is needed: {', '.join(self.changed)}"
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
    """Plan a sweep; nothing is written into `out`.

    A few rows are made and a few steps taken for each kind of cell, with the threads that a worker
    would have. A pair of dictionaries is compared at 2,048 features at most; the time of larger
    ones follows from the square of their size.

    Args:
        sweep: the cells.
        out: the folder of the sweep; what is finished there is left out.
        until: last stage of every cell.
        processes: worker processes; None: as `run_sweep` would choose.
        share: number of a share and of all.
        tell: gets a line as each measurement begins.
    """
    folder = SweepFolder(Path(out))
    cells = cells_of(sweep, share)
    schedule = Schedule(folder, cells, until)
    schedule.check()
    tasks = schedule.first()
    left = [cell for cell in cells if any(cell.name in task.cells for task in tasks)]
    workers, threads, free = local_workers(processes, max(len(left), 1))
    with tempfile.TemporaryDirectory() as scratch, _Threads(threads):
        speeds = Speeds(Path(scratch), tell)
        harvests = _of_kind(tasks, "harvest")
        harvest = sum(speeds.harvest(group) for group in _cells_of_tasks(harvests, left))
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
        harvest_hours=harvest / 3600,
        train_hours=train / 3600,
        later_hours=later / 3600,
        hours=(harvest / max(min(workers, stores), 1) + (train + later) / workers) / 3600,
        disk=disk + sum(one.disk for one in each),
        memory=sum(sorted(groups)[-workers:]) + workers * PROCESS_BYTES,
        free_memory=free,
        changed=tuple(one.cell for one in folder.changed(sweep)),
        each=tuple(each),
    )


class _Threads:
    """A number of threads for a while."""

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
