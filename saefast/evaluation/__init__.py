"""Measure what features respond to, what they do and what they are worth."""

from saefast.evaluation.ablation import FeatureFunction, feature_function
from saefast.evaluation.contributions import Contributions, contribution_r2
from saefast.evaluation.regression import EffectRegression, regress_effect
from saefast.evaluation.statistics import FeatureStatistics, feature_statistics

__all__ = [
    "Contributions",
    "EffectRegression",
    "FeatureFunction",
    "FeatureStatistics",
    "contribution_r2",
    "feature_function",
    "feature_statistics",
    "regress_effect",
]
