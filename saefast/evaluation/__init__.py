"""Evaluations of SAEs and their features: activity, effects, reconstruction and downstream tasks.

Evaluations that run a language model are imported on first access.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saefast.evaluation.ablation import FeatureFunction, feature_function
from saefast.evaluation.contributions import Contributions, contribution_r2
from saefast.evaluation.regression import EffectRegression, regress_effect
from saefast.evaluation.statistics import FeatureStatistics, feature_statistics

if TYPE_CHECKING:
    from saefast.evaluation.absorption import absorb, absorb_rows
    from saefast.evaluation.conditions import Condition, rival_conditions, train_baselines
    from saefast.evaluation.core import core_scores
    from saefast.evaluation.editing import Facts, Knowledge, edit, known_facts, places, ravel_facts
    from saefast.evaluation.explaining import (
        EmbeddingJudge,
        EndpointJudge,
        LocalJudge,
        RulesJudge,
        TextRater,
        explain,
    )
    from saefast.evaluation.probing import (
        LabelledTask,
        labelled_task,
        labelled_tasks,
        probe,
        table_tasks,
    )
    from saefast.evaluation.scores import Evaluation, Score
    from saefast.evaluation.steering import steer

_LATER = {
    "absorption": ("absorb", "absorb_rows"),
    "conditions": ("Condition", "rival_conditions", "train_baselines"),
    "core": ("core_scores",),
    "editing": ("Facts", "Knowledge", "edit", "known_facts", "places", "ravel_facts"),
    "explaining": (
        *("EmbeddingJudge", "EndpointJudge", "LocalJudge", "RulesJudge", "TextRater"),
        "explain",
    ),
    "probing": ("LabelledTask", "labelled_task", "labelled_tasks", "probe", "table_tasks"),
    "scores": ("Evaluation", "Score"),
    "steering": ("steer",),
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}

__all__ = [
    "Condition",
    "Contributions",
    "EffectRegression",
    "EmbeddingJudge",
    "EndpointJudge",
    "Evaluation",
    "Facts",
    "FeatureFunction",
    "FeatureStatistics",
    "Knowledge",
    "LabelledTask",
    "LocalJudge",
    "RulesJudge",
    "Score",
    "TextRater",
    "absorb",
    "absorb_rows",
    "contribution_r2",
    "core_scores",
    "edit",
    "explain",
    "feature_function",
    "feature_statistics",
    "known_facts",
    "labelled_task",
    "labelled_tasks",
    "places",
    "probe",
    "ravel_facts",
    "regress_effect",
    "rival_conditions",
    "steer",
    "table_tasks",
    "train_baselines",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"saefast.evaluation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'saefast.evaluation' has no attribute {name!r}")
