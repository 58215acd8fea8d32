"""Stage probe: how well a few latents tell the classes of labelled tasks apart."""

from typing import TYPE_CHECKING

from saefast.evaluation.scores import Evaluation
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject

if TYPE_CHECKING:
    from saefast.evaluation.probing.tasks import LabelledTask


def probe(job: Job) -> None:
    """Probe the SAEs of a run."""
    evaluate_run("probe", measure, job)


def measure(subject: Subject, how: EvaluateSettings) -> Evaluation:
    """Probe a subject."""
    from saefast.evaluation.probing.evaluation import probe

    settings = how.probe
    return probe(
        subject.model,
        subject.site,
        subject.saes,
        _tasks(how),
        k=settings.k,
        method=settings.method,
        conditions=subject.conditions,
        groups=subject.groups,
        mass=subject.mass,
        progress=subject.progress,
    )


def _tasks(how: EvaluateSettings) -> "list[LabelledTask]":
    from saefast.evaluation.probing.tasks import labelled_tasks, table_tasks

    settings = how.probe
    if settings.tasks:
        return table_tasks(settings.tasks)
    limit = of_budget(how.budget, settings.limit, 6, 12)
    return labelled_tasks(names=settings.names or None, limit=limit)
