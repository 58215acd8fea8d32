"""The driver of a sweep: gives tasks to workers, tries failed ones again, writes the table."""

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from saefast import checks
from saefast.pipeline.runner import NAMES
from saefast.pipeline.together import stream_key
from saefast.sweep.definition import Cell, Sweep
from saefast.sweep.folder import Changed, FailureRecord, SweepFolder
from saefast.sweep.table import write_results
from saefast.sweep.tasks import Schedule, Task
from saefast.sweep.workers import Answer, LocalWorkers, Workers

_ATTEMPTS = 2


@dataclass(frozen=True)
class SweepOutcome:
    """Outcome of a sweep, or of a share of it."""

    cells: int
    """in the sweep, or in the share"""
    skipped: int
    """cells that were finished before"""
    failed: dict[str, str]
    """by cell: why it could not be finished, in one line"""
    leftover: tuple[str, ...]
    """folders of cells that the sweep file does not have"""
    results: Path


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    until: str = "report",
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    remake: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> SweepOutcome:
    """Run all cells that are not finished, and write the table of all.

    A cell that fails is tried once more; then it is named in the table, and the others go on.

    Args:
        sweep: the cells.
        out: the folder of the sweep, a new one or one to go on with.
        until: last stage of every cell.
        processes: worker processes of this machine; None: one for each GPU, or for each core.
        share: number of a share, from 1 on, and number of all shares; None: everything.
        remake: make cells again whose settings in the sweep file have changed.
        tell: gets a line as each task begins or fails.

    Raises:
        ValueError: cells were begun with other settings, and `remake` is False.
        BlockingIOError: another driver works in the folder.
    """
    checks.one_of("until", until, NAMES)
    if processes is not None:
        checks.whole("processes", processes, 1)
    folder = SweepFolder(Path(out))
    cells = cells_of(sweep, share)
    folder.check_new()
    schedule = Schedule(folder, cells, until)
    schedule.check()
    with folder.claimed(share):
        _accept(folder.changed(replace(sweep, cells=tuple(cells))), folder, remake, tell)
        folder.write(sweep, until)
        tasks = schedule.first()
        left = {name for task in tasks for name in task.cells}
        failed: dict[str, str] = {}
        if tasks:
            with LocalWorkers(processes, len(left)) as hands:
                schedule.fit(hands.groups, hands.memory)
                failed = _work(schedule, folder, hands, tell)
        with folder.writing_results():
            write_results(folder)
    return SweepOutcome(
        len(cells), len(cells) - len(left), failed, tuple(folder.leftover(sweep)), folder.results
    )


def cells_of(sweep: Sweep, share: tuple[int, int] | None) -> list[Cell]:
    """Return the cells of a share of a sweep, or all.

    A share has as many cells as others, within one, and cells of as few streams as possible.

    Args:
        sweep: the sweep.
        share: number of the share, from 1 on, and number of all shares; None: everything.
    """
    cells = list(sweep.cells)
    if share is None:
        return cells
    number, of = share
    checks.whole("share", of, 1)
    if not 1 <= number <= of:
        raise ValueError(f"share must be I/N with I from 1 to N, such as 3/16, got {number}/{of}")
    keys = [stream_key(cell.settings) for cell in cells]
    order = sorted(range(len(cells)), key=lambda place: keys[place])
    mine = {place for rank, place in enumerate(order) if rank * of // len(cells) == number - 1}
    return [cell for place, cell in enumerate(cells) if place in mine]


def _accept(
    changed: list[Changed], folder: SweepFolder, remake: bool, tell: Callable[[str], None]
) -> None:
    """Refuse changed cells, or make place for them."""
    if changed and not remake:
        told = "; ".join(f"{each.cell}: {', '.join(each.differences)}" for each in changed)
        raise ValueError(
            f"the sweep file has changed since {folder.root} was begun, and {len(changed)} "
            f"cell{'s' * (len(changed) > 1)} would change: {told}; --remake makes them again, or "
            f"choose another folder"
        )
    for each in changed:
        tell(f"{each.cell} is made again: {', '.join(each.differences)}")
        if each.again:
            folder.remove(each.cell)


def _work(
    schedule: Schedule, folder: SweepFolder, workers: Workers, tell: Callable[[str], None]
) -> dict[str, str]:
    """Do all tasks; return which cells failed, and why."""
    waiting = deque(schedule.first())
    running = 0
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and workers.free():
            task = waiting.popleft()
            tell(_line(task))
            workers.start(task)
            running += 1
        answer = workers.wait()
        running -= 1
        if answer.reason is None:
            waiting.extend(schedule.after(answer.task))
            continue
        tell(f"{_line(answer.task)} failed: {answer.reason}")
        again = _again(answer)
        waiting.extend(again)
        retried = {name for task in again for name in task.cells}
        for name in answer.task.cells:
            if name not in retried:
                failed[name] = answer.reason
                _record(folder, name, answer)
    return failed


def _again(answer: Answer) -> list[Task]:
    """Return what to try after a failure.

    Where a task of several cells raised an error, one of them may be the reason, so each is tried
    alone. Where its process died, none of them may be, so all are tried together first.
    """
    task = answer.task
    attempts = task.attempts + 1
    if len(task.cells) > 1 and not (answer.died and attempts == 1):
        return [task.of_cell(number, 1) for number in range(len(task.cells))]
    return [replace(task, attempts=attempts)] if attempts < _ATTEMPTS else []


def _record(folder: SweepFolder, name: str, answer: Answer) -> None:
    with contextlib.suppress(OSError):  # the disk is full, and the outcome says why the cell failed
        folder.write_failure(name, FailureRecord(answer.reason or "", answer.task.attempts + 1))


def _line(task: Task) -> str:
    many = f"{task.cells[0]} and {len(task.cells) - 1} more" if len(task.cells) > 1 else ""
    return f"{task.kind}: {many or task.cells[0]}"
