"""Stage absorb: absorption of the main latents of classes of words by other latents."""

from saefast.evaluation.absorption import absorb as absorb_saes
from saefast.evaluation.scores import Evaluation
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject


def absorb(job: Job) -> None:
    """Measure absorption in the SAEs of a run."""
    evaluate_run("absorb", measure, job)


def measure(subject: Subject, how: EvaluateSettings) -> Evaluation:
    """Measure absorption in a subject, for the first letters of words of one token."""
    return absorb_saes(
        subject.model,
        subject.site,
        subject.saes,
        words=of_budget(how.budget, how.absorb.words, 4000, 8000),
        conditions=subject.sparse_conditions,
        groups=subject.groups,
        mass=subject.mass,
        progress=subject.progress,
    )
