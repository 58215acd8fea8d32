"""Sparse probing of labelled tasks, compared with random latents, rivals and full activations."""

from saefast.evaluation.probing.evaluation import probe
from saefast.evaluation.probing.tasks import (
    LabelledTask,
    labelled_task,
    labelled_tasks,
    table_tasks,
)

__all__ = ["LabelledTask", "labelled_task", "labelled_tasks", "probe", "table_tasks"]
