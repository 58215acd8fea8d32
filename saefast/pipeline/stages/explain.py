"""Stage explain: rules for all latents, and a judge's scores of explanations."""

from saefast.evaluation.explaining import explain as explain_saes
from saefast.evaluation.scores import Evaluation
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.judges import judge_of
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject


def explain(job: Job) -> None:
    """Explain the latents of a run."""
    evaluate_run("explain", measure, job)


def measure(
    subject: Subject,
    how: EvaluateSettings,
    *,
    dry_run: bool = False,
    prices: tuple[float, float] | None = None,
) -> Evaluation:
    """Explain the latents of a subject.

    Args:
        subject: SAEs with their model and held-out rows.
        how: settings, of which `explain` and the budget are used.
        dry_run: count the judge's requests without sending any.
        prices: prices of the dry run, as of an `EndpointJudge`.

    Returns:
        Scores of the explanations.
    """
    return explain_saes(
        subject.model,
        subject.site,
        subject.saes,
        subject.held_out,
        judge=judge_of(
            how.explain,
            device=subject.model.device,
            prices=prices,
            progress=subject.progress,
        ),
        features=of_budget(how.budget, how.explain.features, 60, 200),
        conditions=subject.sparse_conditions,
        groups=subject.groups,
        mass=subject.mass,
        out=subject.out,
        dry_run=dry_run,
        progress=subject.progress,
    )
