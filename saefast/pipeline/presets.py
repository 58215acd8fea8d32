"""Runs that need no file of settings."""

from saefast.auxk import AuxK
from saefast.config import TrainConfig
from saefast.pipeline.settings import (
    Evaluation,
    Harvest,
    Planes,
    Planted,
    Pooling,
    RunSettings,
    Scoring,
)

QUICK = RunSettings(
    Planted(),
    TrainConfig(
        latents=192,
        k=4,
        seeds=(0, 1, 2, 3),
        tokens=600_000,
        batch_size=512,
        lr=1e-3,
        auxk=AuxK(dead_after=25_000),
    ),
    stability=Scoring(least_rate=2e-4),
    subspace=Planes(rank=16, draws=10),
    pool=Pooling(tokens=100_000, scratch_tokens=600_000),
)

DEMO = RunSettings(
    Harvest(),
    TrainConfig(
        latents=4096,
        k=32,
        seeds=(0, 1, 2, 3),
        tokens=1_600_000,
        batch_size=2048,
        lr=5e-4,
        auxk=AuxK(dead_after=200_000),
    ),
    subspace=Planes(draws=10),
    pool=Pooling(tokens=200_000, scratch_tokens=800_000),
    evaluate=Evaluation(tokens=4096, contexts=3),
)

PRESETS = {"demo": DEMO, "quick": QUICK}
"""What `saefast run` takes instead of a file"""
