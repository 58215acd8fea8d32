"""Stage edit: change one attribute of entities by interchanging latents."""

from saefast.evaluation.scores import Evaluation
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject


def edit(job: Job) -> None:
    """Edit with the SAEs of a run."""
    evaluate_run("edit", measure, job)


def measure(subject: Subject, how: EvaluateSettings) -> Evaluation:
    """Edit with a subject; what the model knows is kept in its folder."""
    from saefast.evaluation.editing.evaluation import edit
    from saefast.evaluation.editing.facts import places, ravel_facts
    from saefast.evaluation.editing.knowledge import known_facts

    settings = how.edit
    facts = ravel_facts(settings.facts) if settings.facts else places()
    return edit(
        subject.model,
        subject.site,
        subject.saes,
        known_facts(subject.model, facts, out=subject.out / "knowledge", progress=subject.progress),
        selector=settings.selector,
        pairs=of_budget(how.budget, settings.pairs, 50, 100),
        conditions=subject.conditions,
        groups=subject.groups,
        mass=subject.mass,
        progress=subject.progress,
    )
