"""Explain latents by rules that can be executed, and let judges use explanations."""

from saefast.evaluation.explaining.evaluation import explain
from saefast.evaluation.explaining.judges import (
    EmbeddingJudge,
    EndpointJudge,
    LocalJudge,
    RulesJudge,
    TextRater,
)

__all__ = ["EmbeddingJudge", "EndpointJudge", "LocalJudge", "RulesJudge", "TextRater", "explain"]
