"""Steering of language models along latents of SAEs, with controls and predictors of success."""

from saefast.evaluation.steering.evaluation import OPENERS, STRENGTHS, Explanations, Rules, steer
from saefast.evaluation.steering.inputs import comparisons
from saefast.evaluation.steering.outcomes import Embedding, Rater, Rule
from saefast.evaluation.steering.runs import CONTROLS, STRENGTH_RULES

__all__ = [
    "CONTROLS",
    "OPENERS",
    "STRENGTHS",
    "STRENGTH_RULES",
    "Embedding",
    "Explanations",
    "Rater",
    "Rule",
    "Rules",
    "comparisons",
    "steer",
]
