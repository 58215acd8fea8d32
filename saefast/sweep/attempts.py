"""Attempts at tasks in the process of a worker."""

from collections.abc import Callable
from typing import Any

from saefast.sweep.harvest_tasks import HARVEST_PART, forget_model, harvest_part_from
from saefast.sweep.match_tasks import MATCH_TILE, match_tile_from
from saefast.sweep.tasks import HARVEST, STAGES, TRAIN, task_from
from saefast.sweep.workers import WorkerTask, reason_of

_READERS: dict[str, Callable[[dict[str, Any]], WorkerTask]] = {
    HARVEST: task_from,
    TRAIN: task_from,
    STAGES: task_from,
    HARVEST_PART: harvest_part_from,
    MATCH_TILE: match_tile_from,
}
"""Function that restores a task from its dict, by kind"""


def attempt(record: dict[str, Any]) -> str | None:
    """Perform a task and return the reason of a failure in one line; None if it succeeded.

    Args:
        record: result of the task's `to_dict`.

    Returns:
        Reason of the failure, or None.
    """
    try:
        if record["kind"] != HARVEST_PART:
            forget_model()
        _READERS[record["kind"]](record).perform()
    except Exception as error:
        return reason_of(error)
    return None
