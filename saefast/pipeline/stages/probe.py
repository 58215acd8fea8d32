"""Stage probe: classification of labelled tasks by a few latents."""

from saefast.evaluation.probing import LabelledTask, labelled_tasks, table_tasks
from saefast.evaluation.probing import probe as probe_saes
from saefast.evaluation.probing.tasks.labelled import EXAMPLES
from saefast.evaluation.scores import Evaluation
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject


def probe(job: Job) -> None:
    """Probe the SAEs of a run."""
    evaluate_run("probe", measure, job)


def measure(subject: Subject, how: EvaluateSettings) -> Evaluation:
    """Probe a subject."""
    settings = how.probe
    return probe_saes(
        subject.model,
        subject.site,
        subject.saes,
        _tasks(how),
        k=settings.k,
        method=settings.method,
        conditions=subject.conditions,
        groups=subject.groups,
        mass=subject.mass,
        repeats=of_budget(how.budget, None, 3, 5),
        progress=subject.progress,
    )


def _tasks(how: EvaluateSettings) -> list[LabelledTask]:
    """Return the tasks of a table, or the package's tasks, as many as the budget allows."""
    settings = how.probe
    if settings.tasks:
        return table_tasks(settings.tasks)
    limit = of_budget(how.budget, settings.limit, 4, 8)
    examples = of_budget(how.budget, None, EXAMPLES // 2, EXAMPLES)
    return labelled_tasks(names=settings.names or None, limit=limit, examples=examples)
