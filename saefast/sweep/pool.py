"""Tasks of one computation on the workers of a sweep: processes of this machine, or Ray."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from saefast import checks
from saefast.sweep.ray_workers import ADDRESS, RayWorkers
from saefast.sweep.workers import AnyTask, LocalWorkers, Workers

ATTEMPTS = 2
"""Number of times that a task is tried"""


def check_on(on: str, processes: int | None) -> None:
    """Raise ValueError or TypeError unless workers can be opened with these arguments."""
    if on not in ("local", "ray") and not on.startswith(ADDRESS):
        raise ValueError(f"on must be local, ray or {ADDRESS}HOST, got {on!r}")
    if processes is not None:
        checks.whole("processes", processes, 1)


def check_share(share: tuple[int, int]) -> None:
    """Raise ValueError or TypeError unless this is the number of a share and of all shares."""
    number, of = share
    checks.whole("share", of, 1)
    if not 1 <= number <= of:
        raise ValueError(f"share must be I/N with I from 1 to N, such as 3/16, got {number}/{of}")


def open_workers(on: str, processes: int | None, tasks: int) -> Workers[Any]:
    """Return workers for a `with` statement.

    Args:
        on: "local", "ray" or "ray://HOST".
        processes: number of concurrent tasks; None: see `LocalWorkers` and `RayWorkers`.
        tasks: maximum number of concurrent tasks.
    """
    return LocalWorkers(processes, tasks) if on == "local" else RayWorkers(on, processes, tasks)


def perform_all(
    tasks: Iterable[AnyTask], workers: Workers[AnyTask], finished: Callable[[AnyTask], None]
) -> None:
    """Perform tasks that do not depend on each other; a failed one is retried once.

    Args:
        tasks: the tasks.
        workers: their workers.
        finished: function that is called when a task has succeeded.

    Raises:
        RuntimeError: a task failed twice; tasks that were running have ended.
    """
    waiting = deque((task, 1) for task in tasks)
    attempts: dict[int, int] = {}
    failure: str | None = None
    running = 0
    while running or (waiting and failure is None):
        while waiting and failure is None and workers.free():
            task, attempt = waiting.popleft()
            attempts[id(task)] = attempt
            workers.start(task)
            running += 1
        answer = workers.wait()
        running -= 1
        if answer.reason is None:
            finished(answer.task)
        elif attempts[id(answer.task)] < ATTEMPTS:
            waiting.append((answer.task, attempts[id(answer.task)] + 1))
        else:
            failure = failure or f"{answer.task.label} failed twice: {answer.reason}"
    if failure is not None:
        raise RuntimeError(f"{failure}; finished work is kept, and resume=True continues")
