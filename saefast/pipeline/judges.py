"""Construction of the judge that settings name."""

from saefast.evaluation.explaining.judges import (
    EmbeddingJudge,
    EndpointJudge,
    Judge,
    LocalJudge,
)
from saefast.lm import load_model
from saefast.pipeline.evaluation_settings import JudgeSettings

_RULES, _EMBEDDING, _LOCAL = "rules", "embedding", "local:"


def judge_of(how: JudgeSettings, *, per_prompt: int = 5, progress: bool) -> Judge | None:
    """Build the judge that settings name, or return None for rules.

    Args:
        how: settings with the name of the judge.
        per_prompt: number of texts in a prompt of an endpoint.
        progress: show progress bars on stderr.

    Returns:
        The judge, or None.
    """
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
        return EndpointJudge(
            url, model_name, key_env=how.key_env, per_prompt=per_prompt, progress=progress
        )
    raise ValueError(
        f"judge must be {_RULES}, {_EMBEDDING}, {_LOCAL}NAME for a language model, or URL#MODEL "
        f"for an endpoint, such as http://localhost:8000/v1#my-model; got {name!r}"
    )
