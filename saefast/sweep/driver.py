"""Driver of a sweep: assigns tasks to workers, retries failed ones, writes table and report."""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saefast import checks
from saefast.pipeline.stage_list import NAMES
from saefast.pipeline.together import stream_key
from saefast.sweep.definition import Cell, Sweep
from saefast.sweep.divided_harvest import divide_harvests
from saefast.sweep.folder import SweepFolder
from saefast.sweep.pool import ATTEMPTS, check_on, check_share, open_workers
from saefast.sweep.records import FailureRecord
from saefast.sweep.report import write_table_and_report
from saefast.sweep.tasks import Schedule, Task
from saefast.sweep.workers import Answer, Workers


@dataclass(frozen=True)
class SweepOutcome:
    """Outcome of a sweep, or of a share of it."""

    cells: int
    """number of cells in the sweep or share"""
    skipped: int
    """number of cells that were already finished"""
    failed: dict[str, str]
    """reasons of failures, one line each, by the name of the cell"""
    leftover: tuple[str, ...]
    """names of folders whose cells are not in the sweep file"""
    results: Path
    """path of the table of results"""
    report: Path
    """path of the report"""


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    until: str = "report",
    on: str = "local",
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    remake: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> SweepOutcome:
    """Run all unfinished cells and write the table of results and the report of all cells.

    A failed cell is retried once. If it fails again, the table states the reason, and the sweep
    continues with the other cells.

    Args:
        sweep: the sweep to run.
        out: folder of the sweep; an existing sweep is resumed.
        until: last stage of every cell.
        on: where cells run: "local", in processes of this machine; "ray", on the Ray cluster that
            RAY_ADDRESS names or that runs on this machine, else on a new one for the time of the
            sweep; or "ray://HOST". All nodes must have `out` at the same path, and saefast.
        processes: number of concurrent tasks; None: one for each GPU, or for each processor core if
            there is no GPU, and on Ray as many as there is room for.
        share: number of a share, starting at 1, and number of shares; None: all cells.
        remake: whether to run cells again whose settings in the sweep file have changed.
        tell: function that is called with a line of text when a task begins or fails.

    Returns:
        The outcome, with the reasons of failures.

    Raises:
        ValueError: cells were begun with other settings, and `remake` is False.
        FileExistsError: `out` is the folder of a run.
        BlockingIOError: another driver uses the folder.
    """
    checks.one_of("until", until, NAMES)
    check_on(on, processes)
    folder = SweepFolder(Path(out))
    cells = cells_of(sweep, share)
    folder.check_new()
    schedule = Schedule(folder, cells, until)
    schedule.check(here=on == "local")
    with folder.claimed(share):
        _accept(replace(sweep, cells=tuple(cells)), folder, remake, tell)
        folder.write(sweep, until)
        left = schedule.unfinished()
        failed: dict[str, str] = {}
        if left:
            hands: Workers[Task]
            with open_workers(on, processes, len(left)) as hands:
                schedule.fit(hands.groups, hands.memory)
                tasks = schedule.first()
                if on == "local":  # a driver on Ray may lack the devices of the nodes
                    divide_harvests(tasks, folder, hands, tell)
                failed = _work(schedule, tasks, folder, hands, tell)
        results, report = write_table_and_report(folder)
    return SweepOutcome(
        len(cells),
        len(cells) - len(left),
        failed,
        tuple(folder.leftover(sweep)),
        results,
        report,
    )


def cells_of(sweep: Sweep, share: tuple[int, int] | None) -> list[Cell]:
    """Return the cells of a share of a sweep, or all cells.

    Shares differ by at most one in their number of cells. Cells of one stream are in successive
    shares, or in one.

    Args:
        sweep: the sweep.
        share: number of the share, starting at 1, and number of shares; None: all cells.

    Returns:
        The cells, in the order of the sweep.
    """
    cells = list(sweep.cells)
    if share is None:
        return cells
    check_share(share)
    number, of = share
    keys = [stream_key(cell.settings) for cell in cells]
    order = sorted(range(len(cells)), key=lambda place: keys[place])
    mine = {place for rank, place in enumerate(order) if rank * of // len(cells) == number - 1}
    return [cell for place, cell in enumerate(cells) if place in mine]


def _accept(sweep: Sweep, folder: SweepFolder, remake: bool, tell: Callable[[str], None]) -> None:
    """Raise a ValueError for changed cells; with `remake`, prepare them for their new settings."""
    changed = folder.changed(sweep)
    by_name = {cell.name: cell for cell in sweep.cells}
    if changed and not remake:
        listed = "; ".join(f"{each.cell}: {', '.join(each.differences)}" for each in changed)
        raise ValueError(
            f"the sweep file has changed since {folder.root} was started, which changes "
            f"{len(changed)} cell{'s' * (len(changed) > 1)}: {listed}; run them again with "
            f"--remake, or choose another folder"
        )
    for each in changed:
        tell(f"{each.cell} is run again: {', '.join(each.differences)}")
        if each.again:
            folder.remove(each.cell)
        else:
            folder.rewrite_settings(by_name[each.cell])


def _work(
    schedule: Schedule,
    first: Sequence[Task],
    folder: SweepFolder,
    workers: Workers[Task],
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Perform the first tasks and those after them, and return the reasons of failures by cell."""
    waiting = deque(first)
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


def _again(answer: Answer[Task]) -> list[Task]:
    """Return the tasks to retry after a failure.

    If a task of several cells raised an error, one cell may be the cause, so each is retried alone.
    If its process died, the cause may be none of them, so all are first retried together.
    """
    task = answer.task
    attempts = task.attempts + 1
    if len(task.cells) > 1 and not (answer.died and attempts == 1):
        return [task.of_cell(number, 1) for number in range(len(task.cells))]
    return [replace(task, attempts=attempts)] if attempts < ATTEMPTS else []


def _record(folder: SweepFolder, name: str, answer: Answer[Task]) -> None:
    with contextlib.suppress(OSError):  # the disk may be full; the outcome has the reason as well
        folder.write_failure(name, FailureRecord(answer.reason or "", answer.task.attempts + 1))


def _line(task: Task) -> str:
    many = f"{task.cells[0]} and {len(task.cells) - 1} more" if len(task.cells) > 1 else ""
    return f"{task.kind}: {many or task.cells[0]}"
