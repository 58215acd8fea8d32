"""Tasks of a sweep: harvest of a store, training on one stream, and later stages of a cell.

A task is plain data, so that it can be sent to any process with access to the folder.
"""

import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import saefast
from saefast.activations import open_activations
from saefast.pipeline.job import Job
from saefast.pipeline.runner import (
    check_here,
    check_run,
    is_finished,
    is_finished_until,
    run_pipeline,
)
from saefast.pipeline.settings import RunSettings
from saefast.pipeline.settings_file import settings_from
from saefast.pipeline.together import harvest_together, store_key, stream_key, train_together
from saefast.report.run_data import RunData
from saefast.sweep.definition import Cell
from saefast.sweep.folder import SweepFolder
from saefast.sweep.records import DoneRecord
from saefast.sweep.sae_stability import stability_of_saes
from saefast.train.planning.memory import PROCESS_BYTES, rank_memory

HARVEST, TRAIN, STAGES = "harvest", "train", "stages"
_PATIENCE = 1.0
_PATIENT_SECONDS = 60.0
_MOST_TOGETHER = 200
"""Maximum number of cells of one training, each of which holds two open files."""


@dataclass(frozen=True)
class Task:
    """Task on one or several cells."""

    kind: str
    """"harvest", "train" or "stages" """
    root: str
    """path of the folder of the sweep"""
    until: str
    """last stage of every cell"""
    cells: tuple[str, ...]
    """names of the cells"""
    settings: tuple[dict[str, Any], ...]
    """settings of each cell"""
    bytes_of_cells: tuple[int, ...]
    """bytes of memory for the SAEs of each cell; 0 for a harvest"""
    attempts: int = 0
    """number of failed attempts"""

    @property
    def memory(self) -> int:
        """Bytes of memory of the process that performs it."""
        return PROCESS_BYTES + sum(self.bytes_of_cells)

    def to_dict(self) -> dict[str, Any]:
        """Return the task as a dict that JSON can represent, for `task_from`."""
        return asdict(self)

    @property
    def label(self) -> str:
        """Name of the task for messages."""
        return f"{self.kind} {self.cells[0]}"

    def perform(self) -> None:
        """Do the work in this process; finished parts are kept."""
        _perform(self)

    def of_cell(self, number: int, attempts: int) -> "Task":
        """Return the same task for one of its cells, with a number of failed attempts."""
        return Task(
            self.kind,
            self.root,
            self.until,
            (self.cells[number],),
            (self.settings[number],),
            (self.bytes_of_cells[number],),
            attempts,
        )


def task_from(record: dict[str, Any]) -> Task:
    """Restore a task from the result of `Task.to_dict`."""
    lists = {name: tuple(record[name]) for name in ("cells", "settings", "bytes_of_cells")}
    return Task(**(record | lists))


def _perform(task: Task) -> None:
    """Perform a task; work that is already finished is kept."""
    folder = SweepFolder(Path(task.root))
    jobs = [
        Job(folder.cell(name), settings_from(settings), False)
        for name, settings in zip(task.cells, task.settings, strict=True)
    ]
    if task.kind == HARVEST:
        _patiently(harvest_together, jobs, folder.stores, seconds=None)
    elif task.kind == TRAIN:
        _patiently(train_together, jobs, seconds=_PATIENT_SECONDS)
    else:
        (job,) = jobs
        run_pipeline(job.settings, job.run, until=task.until, resume=True, progress=False)
    for job, name in zip(jobs, task.cells, strict=True):
        if is_finished_until(job, task.until):
            stability_of_saes(folder, name, RunData(job.run))
            folder.write_done(name, _here(job.settings))


def _patiently(work: Any, jobs: list[Job], *others: Any, seconds: float | None) -> None:
    """Perform work, and wait while a process of another share or of a killed driver locks it.

    A BlockingIOError is raised after `seconds`; None: never.
    """
    begun = time.monotonic()
    while True:
        try:
            work(jobs, *others, progress=False)
            return
        except BlockingIOError:
            if seconds is not None and time.monotonic() - begun > seconds:
                raise
            time.sleep(_PATIENCE)


def _here(settings: RunSettings) -> DoneRecord:
    """Describe the machine and software of this process."""
    return DoneRecord(
        machine=platform.node(),
        processor=platform.processor() or platform.machine(),
        device=settings.trainer.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        commit=_commit(),
        saefast=version("saefast"),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )


def _commit() -> str | None:
    """Return the commit of the checkout that saefast was imported from."""
    folder = Path(saefast.__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return printed.stdout.strip()


class Schedule:
    """Order of the tasks of a sweep.

    Args:
        folder: folder of the sweep.
        cells: cells to be finished.
        until: last stage of every cell.
    """

    def __init__(self, folder: SweepFolder, cells: Sequence[Cell], until: str) -> None:
        self._folder, self._until = folder, until
        self._cells = {cell.name: cell for cell in cells}
        self._groups = 1
        self._memory: int | None = None

    def fit(self, groups: int, memory: int | None) -> None:
        """Set how trainings are divided among workers.

        Args:
            groups: minimum number of tasks for all trainings, if there are as many cells. More
                tasks keep more workers busy, fewer tasks read the rows less often.
            memory: bytes for the SAEs of one training; None: no limit.
        """
        self._groups, self._memory = groups, memory

    def check(self, here: bool) -> None:
        """Raise an error if the settings of a cell do not permit a run.

        Args:
            here: whether this machine performs the tasks, so that it must have their devices,
                packages and initial SAEs.
        """
        for cell in self._cells.values():
            try:
                job = self._folder.job(cell)
                check_run(job, self._until)
                if here:
                    check_here(job, self._until)
            except ValueError as error:
                raise ValueError(f"the cell {cell.name} cannot be run: {error}") from error

    def unfinished(self) -> list[str]:
        """Return the names of the cells that are not finished."""
        return [name for name, cell in self._cells.items() if not self._finished(cell)]

    def first(self) -> list[Task]:
        """Return the tasks that do not depend on other tasks."""
        left = [self._cells[name] for name in self.unfinished()]
        unharvested = [cell for cell in left if not is_finished(self._folder.job(cell), "harvest")]
        waiting = {cell.name for cell in unharvested}
        tasks = [
            self._task(HARVEST, cells)
            for cells in _grouped(unharvested, [store_key(cell.settings) for cell in unharvested])
        ]
        return tasks + self._trainings([cell for cell in left if cell.name not in waiting])

    def after(self, task: Task) -> list[Task]:
        """Return the tasks that depend on a finished task."""
        cells = [self._cells[name] for name in task.cells]
        left = [cell for cell in cells if not self._finished(cell)]
        if task.kind == HARVEST:
            return self._trainings(left)
        return [self._task(STAGES, [cell]) for cell in left] if task.kind == TRAIN else []

    def _finished(self, cell: Cell) -> bool:
        done = self._folder.done(cell.name) is not None
        return done and is_finished_until(self._folder.job(cell), self._until)

    def _trainings(self, cells: Sequence[Cell]) -> list[Task]:
        """Return the trainings of harvested cells, and the later stages of trained cells."""
        trained = [cell for cell in cells if is_finished(self._folder.job(cell), "train")]
        names = {cell.name for cell in trained}
        untrained = [cell for cell in cells if cell.name not in names]
        streams = _grouped(untrained, [stream_key(cell.settings) for cell in untrained])
        each = -(-self._groups // max(len(streams), 1))
        tasks = [
            self._task(TRAIN, group)
            for stream in streams
            for width in [self._width(stream[0])]
            for group in divided(stream, each, self._memory, width)
        ]
        return tasks + [self._task(STAGES, [cell]) for cell in trained]

    def _width(self, cell: Cell) -> int:
        return open_activations(str(self._folder.job(cell).train_rows)).d

    def _task(self, kind: str, cells: Sequence[Cell]) -> Task:
        return Task(
            kind,
            str(self._folder.root.resolve()),
            self._until,
            tuple(cell.name for cell in cells),
            tuple(cell.settings.to_dict() for cell in cells),
            tuple(0 if kind == HARVEST else self._bytes(cell) for cell in cells),
        )

    def _bytes(self, cell: Cell) -> int:
        try:
            return training_bytes(cell.settings, self._width(cell))
        except (OSError, ValueError):  # rows that cannot be read, a failure of the task itself
            return 0


def divided(cells: Sequence[Cell], groups: int, memory: int | None, width: int) -> list[list[Cell]]:
    """Divide the cells of one stream into groups of similar training cost.

    Cells that log to wandb are not grouped.

    Args:
        cells: cells of one stream.
        groups: minimum number of groups, if there are as many cells.
        memory: bytes for the SAEs of a group, from which the number of groups is increased; None:
            no limit. A cell may exceed it alone.
        width: width of the rows.

    Returns:
        The groups.
    """
    if any("wandb" in cell.settings.trainer.log_to for cell in cells):
        return [[cell] for cell in cells]  # wandb would log a group as a single run
    groups = max(groups, -(-len(cells) // _MOST_TOGETHER))
    costs = {cell.name: training_bytes(cell.settings, width) for cell in cells}
    if memory is not None:
        groups = max(groups, -(-sum(costs.values()) // max(memory, 1)))
    count = min(groups, len(cells))
    found: list[list[Cell]] = [[] for _ in range(count)]
    for cell in sorted(cells, key=lambda cell: -costs[cell.name]):
        smallest = min(found, key=lambda group: sum(costs[each.name] for each in group))
        smallest.append(cell)
    return found


def training_bytes(settings: RunSettings, width: int) -> int:
    """Estimate the bytes of memory of the SAEs of a run during training on rows of a width.

    Batches and codes, which all SAEs of a training use in turn, are part of `PROCESS_BYTES`.

    Returns:
        Number of bytes.
    """
    train = settings.train
    memory = rank_memory(train, width, 0, 1)
    return len(train.seeds) * (memory.state + memory.end)


def _grouped(cells: Sequence[Cell], keys: Sequence[str]) -> list[list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell, key in zip(cells, keys, strict=True):
        found.setdefault(key, []).append(cell)
    return list(found.values())
