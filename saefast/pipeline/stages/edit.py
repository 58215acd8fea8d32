"""Stage edit: changes of one attribute of entities by interchanging latents."""

from collections.abc import Sequence

from saefast.evaluation.editing import Facts, known_facts, places, ravel_facts
from saefast.evaluation.editing import edit as edit_with
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
    """Edit with the first SAEs of a subject; the model's answers are stored in its folder."""
    settings = how.edit
    some = subject.first(of_budget(how.budget, settings.saes, 1, 2))
    knowledge = known_facts(
        some.model, _facts(how), out=some.out / "knowledge", progress=some.progress
    )
    return edit_with(
        some.model,
        some.site,
        some.saes,
        knowledge,
        selector=settings.selector,
        pairs=of_budget(how.budget, settings.pairs, 24, 32),
        diffmean=how.budget == "full",
        mdas=settings.mdas,
        conditions=some.conditions,
        groups=some.groups,
        mass=some.mass,
        progress=some.progress,
    )


def _facts(how: EvaluateSettings) -> Sequence[Facts]:
    """Return the facts of a folder, or built-in ones, with a quick budget only of countries."""
    if how.edit.facts:
        return ravel_facts(how.edit.facts)
    cities, countries = places()
    if how.budget == "full":
        names = ("country", "continent", "language"), ("capital", "continent", "language")
        return [cities.select(attributes=names[0]), countries.select(attributes=names[1])]
    return [countries.select(attributes=("capital", "continent"))]
