"""Construction of the judge that settings name."""

import torch

from saefast.evaluation.explaining.judges import (
    EmbeddingJudge,
    EndpointJudge,
    Judge,
    LocalJudge,
)
from saefast.lm import load_model
from saefast.pipeline.evaluation_settings import EMBEDDING, LOCAL, RULES, JudgeSettings


def judge_of(
    how: JudgeSettings,
    *,
    device: torch.device,
    per_prompt: int = 5,
    prices: tuple[float, float] | None = None,
    progress: bool,
) -> Judge | None:
    """Build the judge that settings name, or return None for rules.

    Args:
        how: settings with the name of the judge.
        device: device of a judge that is a language model.
        per_prompt: number of texts in a prompt of an endpoint.
        prices: prices of an endpoint's tokens, see `EndpointJudge`.
        progress: show progress bars on stderr.

    Returns:
        The judge, or None.
    """
    name = how.judge
    if name == RULES:
        return None
    if name == EMBEDDING:
        return EmbeddingJudge()
    if name.startswith(LOCAL):
        model = load_model(name.removeprefix(LOCAL), device=device, progress=progress)
        return LocalJudge(model, progress=progress)
    url, _, model_name = name.partition("#")
    return EndpointJudge(
        url,
        model_name,
        key_env=how.key_env,
        per_prompt=per_prompt,
        prices=prices,
        progress=progress,
    )
