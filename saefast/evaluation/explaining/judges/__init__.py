"""Judges of explanations: by rules, embeddings, a local model or an endpoint."""

from saefast.evaluation.explaining.judges.by_embedding import EmbeddingJudge
from saefast.evaluation.explaining.judges.by_endpoint import EndpointJudge
from saefast.evaluation.explaining.judges.by_local_model import LocalJudge
from saefast.evaluation.explaining.judges.by_rules import RulesJudge
from saefast.evaluation.explaining.judges.calibration import Calibration, calibrate
from saefast.evaluation.explaining.judges.of_texts import TextRater
from saefast.evaluation.explaining.judges.protocol import Cost, Explanation, Judge, Question, Window

__all__ = [
    "Calibration",
    "Cost",
    "EmbeddingJudge",
    "EndpointJudge",
    "Explanation",
    "Judge",
    "LocalJudge",
    "Question",
    "RulesJudge",
    "TextRater",
    "Window",
    "calibrate",
]
