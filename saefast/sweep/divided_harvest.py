"""Harvests of a sweep that all workers share, where there are fewer stores than workers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings
from saefast.pipeline.settings_file import settings_from
from saefast.pipeline.together import harvest_together
from saefast.sweep.folder import SweepFolder
from saefast.sweep.harvest_driver import harvest_by_processes
from saefast.sweep.tasks import HARVEST, Task
from saefast.sweep.workers import Workers, reason_of


def divided_harvests(tasks: Sequence[Task], workers: int) -> list[Task]:
    """Return the harvests that all workers of one machine share.

    Args:
        tasks: tasks that do not depend on others.
        workers: number of workers.
    """
    harvests = [task for task in tasks if task.kind == HARVEST]
    if len(harvests) >= workers:  # each worker has a store of its own
        return []
    return [
        task
        for task in harvests
        if isinstance(settings_from(task.settings[0]).data, HarvestSettings)
    ]


def divide_harvests(
    tasks: Sequence[Task], folder: SweepFolder, workers: Workers[Any], tell: Callable[[str], None]
) -> None:
    """Write the stores of `divided_harvests`, each by all workers.

    The tasks then only record what is finished. They are the second attempt at a harvest that
    fails here, and wait for one that another driver performs.

    Args:
        tasks: tasks that do not depend on others.
        folder: folder of the sweep.
        workers: idle workers.
        tell: function that is called with a line of text when a harvest begins or fails.
    """
    for task in divided_harvests(tasks, workers.groups):
        tell(f"{task.label}, by {workers.groups} workers")
        jobs = [
            Job(folder.cell(name), settings_from(settings), False)
            for name, settings in zip(task.cells, task.settings, strict=True)
        ]
        write = partial(harvest_by_processes, processes=workers.groups, workers=workers)
        try:
            harvest_together(jobs, folder.stores, progress=False, write=write)
        except BlockingIOError:
            tell(f"{task.label} waits for another process")
        except Exception as error:
            tell(f"{task.label} failed: {reason_of(error)}")
