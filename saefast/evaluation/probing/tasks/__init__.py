"""Labelled tasks for probes: texts or spans of texts in two classes."""

from collections.abc import Sequence

from saefast import checks
from saefast.evaluation.probing.tasks.code import CLASSES, code_tasks
from saefast.evaluation.probing.tasks.labelled import (
    EXAMPLES,
    FEWEST,
    LabelledTask,
    Span,
    labelled_task,
)
from saefast.evaluation.probing.tasks.sae_probes import DEFAULT_NAMES, PACKAGE, sae_probes_tasks
from saefast.evaluation.probing.tasks.tables import table_tasks

__all__ = [
    "CLASSES",
    "DEFAULT_NAMES",
    "LabelledTask",
    "Span",
    "labelled_task",
    "labelled_tasks",
    "table_tasks",
]

CODE = "code"

_SOURCES = {PACKAGE: sae_probes_tasks, CODE: code_tasks}


def labelled_tasks(
    source: str = PACKAGE,
    *,
    names: Sequence[str] | None = None,
    limit: int | None = 12,
    examples: int = EXAMPLES,
    seed: int = 0,
) -> list[LabelledTask]:
    """Build the tasks of a source that needs no network.

    Args:
        source: "sae-probes" reads the 113 binary tasks of that package, which must be installed
            (`pip install --no-deps sae-probes`); some of them contain slurs, but none of the first
            12 does. "code" uses the classes of Python's tokens in the built-in corpus.
        names: names of tasks, in this order; None: short and varied ones first, then the others.
        limit: maximum number of tasks; None: all.
        examples: maximum number of examples of a task, half of them positive.
        seed: seed of the draw where there are more.

    Returns:
        The tasks in their order.
    """
    checks.one_of("source", source, tuple(_SOURCES))
    if isinstance(names, str):
        raise TypeError("names must be a list of names, got a str")
    if limit is not None:
        checks.whole("limit", limit)
        checks.at_least("limit", limit, 1)
    checks.whole("examples", examples)
    checks.at_least("examples", examples, 2 * FEWEST)
    return _SOURCES[source](names, limit, examples, seed)
