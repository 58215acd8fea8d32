"""Explanations of latents by executable rules, and scores of explanations by judges."""

from saefast.evaluation.explaining.evaluation import explain
from saefast.evaluation.explaining.judges import (
    EmbeddingJudge,
    EndpointJudge,
    LocalJudge,
    RulesJudge,
    TextRater,
)

__all__ = ["EmbeddingJudge", "EndpointJudge", "LocalJudge", "RulesJudge", "TextRater", "explain"]
