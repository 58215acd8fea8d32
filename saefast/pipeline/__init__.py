"""Runs from activations to the report: settings, presets and stages."""

from saefast.pipeline.presets import PRESETS
from saefast.pipeline.runner import Outcome, run_pipeline, settings_of
from saefast.pipeline.settings import (
    EvaluateSettings,
    HarvestSettings,
    PlantedSettings,
    PoolSettings,
    RunSettings,
    StabilitySettings,
    StoreSettings,
    SubspaceSettings,
    TrainedSettings,
    TrainerSettings,
)
from saefast.pipeline.settings_file import read_settings
from saefast.pipeline.stage_list import EVALUATIONS, NAMES

__all__ = [
    "EVALUATIONS",
    "NAMES",
    "PRESETS",
    "EvaluateSettings",
    "HarvestSettings",
    "Outcome",
    "PlantedSettings",
    "PoolSettings",
    "RunSettings",
    "StabilitySettings",
    "StoreSettings",
    "SubspaceSettings",
    "TrainedSettings",
    "TrainerSettings",
    "read_settings",
    "run_pipeline",
    "settings_of",
]
