"""Preset settings of runs, which need no file."""

from saefast.pipeline.settings import (
    EvaluateSettings,
    HarvestSettings,
    PlantedSettings,
    PoolSettings,
    RunSettings,
    StabilitySettings,
    SubspaceSettings,
)
from saefast.train.config import TrainConfig
from saefast.train.settings import AuxK

QUICK = RunSettings(
    PlantedSettings(rows=100_000, held_out=10_000),
    TrainConfig(
        latents=192,
        k=4,
        seeds=(0, 1, 2, 3),
        tokens=200_000,
        batch_size=512,
        lr=1.5e-3,
        auxk=AuxK(dead_after=25_000),
    ),
    stability=StabilitySettings(least_rate=2e-4),
    subspace=SubspaceSettings(rank=16, draws=10),
    pool=PoolSettings(tokens=25_000),
)

DEMO = RunSettings(
    HarvestSettings(),
    TrainConfig(
        latents=2048,
        k=32,
        seeds=(0, 1, 2, 3),
        tokens=2_000_000,  # each row ten times: features recur after many steps only
        batch_size=1024,
        lr=3e-3,  # smaller rates hardly move the weights in so few steps
        auxk=AuxK(dead_after=100_000),
    ),
    subspace=SubspaceSettings(draws=10),
    pool=PoolSettings(tokens=200_000),
    evaluate=EvaluateSettings(tokens=2048, contexts=3),
)

PRESETS = {"demo": DEMO, "quick": QUICK}
"""Settings that `saefast run` accepts by name instead of a file"""
