"""A whole run, from activations to the report: settings, presets, stages."""

from saefast.pipeline.presets import PRESETS
from saefast.pipeline.runner import NAMES, Outcome, run_pipeline, settings_of
from saefast.pipeline.settings import (
    Evaluation,
    Harvest,
    Planes,
    Planted,
    Pooling,
    RunSettings,
    Scoring,
    Stores,
    Trained,
    read_settings,
)

__all__ = [
    "NAMES",
    "PRESETS",
    "Evaluation",
    "Harvest",
    "Outcome",
    "Planes",
    "Planted",
    "Pooling",
    "RunSettings",
    "Scoring",
    "Stores",
    "Trained",
    "read_settings",
    "run_pipeline",
    "settings_of",
]
