"""Stage explain: rules for all latents, and how well a judge can use them."""

from typing import TYPE_CHECKING

from saefast.evaluation.explaining import explain as explain_saes
from saefast.evaluation.scores import Evaluation
from saefast.pipeline.evaluation_settings import ExplainSettings, of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject

if TYPE_CHECKING:
    from saefast.evaluation.explaining.judges import Judge

_RULES, _EMBEDDING, _LOCAL = "rules", "embedding", "local:"


def explain(job: Job) -> None:
    """Explain the latents of a run."""
    evaluate_run("explain", measure, job)


def measure(subject: Subject, how: EvaluateSettings, *, dry_run: bool = False) -> Evaluation:
    """Explain the latents of a subject.

    Args:
        subject: the SAEs, their model and held-out rows.
        how: settings; of `explain` and the budget.
        dry_run: count what a judge would be asked, and ask nothing.
    """
    return explain_saes(
        subject.model,
        subject.site,
        subject.saes,
        subject.held_out,
        judge=_judge(how.explain, subject.progress),
        features=of_budget(how.budget, how.explain.features, 60, 200),
        conditions=subject.sparse_conditions,
        groups=subject.groups,
        mass=subject.mass,
        out=subject.out,
        dry_run=dry_run,
        progress=subject.progress,
    )


def _judge(how: ExplainSettings, progress: bool) -> "Judge | None":
    """Return the judge of a name; None stands for rules."""
    from saefast.evaluation.explaining.judges import EmbeddingJudge, EndpointJudge, LocalJudge
    from saefast.lm import load_model

    name = how.judge
    if name == _RULES:
        return None
    if name == _EMBEDDING:
        return EmbeddingJudge()
    if name.startswith(_LOCAL):
        model = load_model(name.removeprefix(_LOCAL), progress=progress)
        return LocalJudge(model, progress=progress)
    url, _, model_name = name.partition("#")
    if url.startswith(("http://", "https://")) and model_name:
        return EndpointJudge(url, model_name, key_env=how.key_env, progress=progress)
    raise ValueError(
        f"judge must be {_RULES}, {_EMBEDDING}, {_LOCAL}NAME for a language model, or URL#MODEL "
        f"for an endpoint, such as http://localhost:8000/v1#my-model; got {name!r}"
    )
