"""The tasks of a sweep: rows by one pass of a model, SAEs of one stream, a cell's other stages.

A task is plain data, so that it can be sent to any process that sees the folder.
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
from saefast.pipeline.runner import check_run, is_finished, is_finished_until, run_pipeline
from saefast.pipeline.settings import RunSettings, settings_from
from saefast.pipeline.together import harvest_together, store_key, stream_key, train_together
from saefast.sweep.definition import Cell
from saefast.sweep.folder import DoneRecord, SweepFolder

HARVEST, TRAIN, STAGES = "harvest", "train", "stages"
_PATIENCE = 1.0
_PATIENT_SECONDS = 60.0
PROCESS_BYTES = 600_000_000
"""Of a process that has imported everything and reads rows"""
_STATE_BYTES = 24
"""Of a parameter in a training: weight, two moments, packed copies, and what is being written"""


@dataclass(frozen=True)
class Task:
    """Work on one or several cells."""

    kind: str
    """harvest, train or stages"""
    root: str
    """folder of the sweep"""
    until: str
    """last stage of every cell"""
    cells: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    """of each cell"""
    attempts: int = 0
    """how often it has failed"""

    def to_dict(self) -> dict[str, Any]:
        """Return what `task_from` takes, as JSON can hold it."""
        return asdict(self)

    def of_cell(self, number: int, attempts: int) -> "Task":
        """Return the same task for one of its cells."""
        return Task(
            self.kind,
            self.root,
            self.until,
            (self.cells[number],),
            (self.settings[number],),
            attempts,
        )


def task_from(told: dict[str, Any]) -> Task:
    """Return a task from `Task.to_dict`."""
    lists = {name: tuple(told[name]) for name in ("cells", "settings")}
    return Task(**(told | lists))


def perform(task: Task) -> None:
    """Do a task; what is finished stays."""
    folder = SweepFolder(Path(task.root))
    jobs = [
        Job(folder.cell(name), settings_from(told), False)
        for name, told in zip(task.cells, task.settings, strict=True)
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
            folder.write_done(name, _here(job.settings))


def attempt(task: Task) -> str | None:
    """Do a task; return why it failed, in one line, or None."""
    try:
        perform(task)
    except Exception as error:
        return reason_of(error)
    return None


def reason_of(error: BaseException) -> str:
    """Return why something failed, in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _patiently(work: Any, jobs: list[Job], *others: Any, seconds: float | None) -> None:
    """Work on what another process may have: of another share, or of a driver that was killed."""
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
    """Describe this process."""
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
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


class Schedule:
    """Which tasks there are, and which follow.

    Args:
        folder: of the sweep.
        cells: those to be finished.
        until: last stage.
    """

    def __init__(self, folder: SweepFolder, cells: Sequence[Cell], until: str) -> None:
        self._folder, self._until = folder, until
        self._cells = {cell.name: cell for cell in cells}
        self._groups = 1
        self._memory: int | None = None

    def fit(self, groups: int, memory: int | None) -> None:
        """Divide trainings among workers.

        Args:
            groups: number of tasks that the trainings are divided into at least, where there are so
                many cells: more keep more workers busy, fewer read the rows less often.
            memory: bytes for the SAEs of one training; None: no bound.
        """
        self._groups, self._memory = groups, memory

    def check(self) -> None:
        """Raise an error if a cell cannot be run."""
        for cell in self._cells.values():
            try:
                check_run(self._folder.job(cell), self._until)
            except ValueError as error:
                raise ValueError(f"the cell {cell.name} cannot be run: {error}") from error

    def first(self) -> list[Task]:
        """Return the tasks that need no other."""
        left = [cell for cell in self._cells.values() if not self._finished(cell)]
        unharvested = [cell for cell in left if not is_finished(self._folder.job(cell), "harvest")]
        waiting = {cell.name for cell in unharvested}
        tasks = [
            self._task(HARVEST, cells)
            for cells in _grouped(unharvested, [store_key(cell.settings) for cell in unharvested])
        ]
        return tasks + self._trainings([cell for cell in left if cell.name not in waiting])

    def after(self, task: Task) -> list[Task]:
        """Return the tasks that a finished one was needed for."""
        cells = [self._cells[name] for name in task.cells]
        left = [cell for cell in cells if not self._finished(cell)]
        if task.kind == HARVEST:
            return self._trainings(left)
        return [self._task(STAGES, [cell]) for cell in left] if task.kind == TRAIN else []

    def _finished(self, cell: Cell) -> bool:
        done = self._folder.done(cell.name) is not None
        return done and is_finished_until(self._folder.job(cell), self._until)

    def _trainings(self, cells: Sequence[Cell]) -> list[Task]:
        """Return the trainings of cells whose rows are there, and what follows finished ones."""
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
        )


def divided(cells: Sequence[Cell], groups: int, memory: int | None, width: int) -> list[list[Cell]]:
    """Divide cells into groups that take about as long as each other.

    Args:
        cells: cells of one stream.
        groups: number of groups at least, where there are so many cells.
        memory: bytes for the SAEs of a group, where one cell alone does not take more; None: no
            bound.
        width: of the rows.
    """
    if any("wandb" in cell.settings.trainer.log_to for cell in cells):
        return [[cell] for cell in cells]  # its runs would be one
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
    """Return about how much memory the SAEs of a run take while they are trained."""
    train = settings.train
    return len(train.seeds) * train.latents * 2 * width * _STATE_BYTES


def _grouped(cells: Sequence[Cell], keys: Sequence[str]) -> list[list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell, key in zip(cells, keys, strict=True):
        found.setdefault(key, []).append(cell)
    return list(found.values())
