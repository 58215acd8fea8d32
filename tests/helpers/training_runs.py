"""Small training runs, and their files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tolerance import assert_same_bits

from saefast import SAE, AuxK, TrainConfig, train_saes
from saefast.synthetic import PlantedWorld
from saefast.train import loop as training
from saefast.train.seed_trainer import SeedTrainer

WORLD = PlantedWorld.create(64, 16, active=3)
ROWS = WORLD.sample(1500, 0) + 0.5


def config(**changes: Any) -> TrainConfig:
    """Return the config of a small run with epochs, AuxK and schedules."""
    settings: dict[str, Any] = {
        "latents": 96,
        "k": 4,
        "tokens": 4000,
        "batch_size": 128,
        "lr": 2e-3,
        "auxk": AuxK(k=6, dead_after=200),
        "k_start": 8,
        "k_anneal": 0.3,
    }
    return TrainConfig(**(settings | changes))


LONGER = config(seeds=(0, 3), tokens=12_000)
"""for runs that are interrupted at many steps"""
SEVERAL = "several ranks train topk, abstopk, batchtopk, matryoshka, relu and jumprelu"
"""start of the message that refuses other settings"""


def train(configuration: Any, **arguments: Any) -> list[SAE]:
    """Train on the small rows without progress."""
    settings = {"progress": False, "log_every": 7} | arguments
    return train_saes(settings.pop("rows", ROWS), configuration, **settings)


def assert_same_sae(actual: SAE, expected: SAE) -> None:
    for name, value in expected.state_dict().items():
        assert_same_bits(actual.state_dict()[name], value)


def files_of(out: Path) -> dict[str, bytes]:
    """Return the content of files that must not depend on interruptions: everything but times."""
    kept = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "metrics.jsonl"
    }
    lines = metrics_of(out)
    for line in lines:
        for name in ("seconds", "tokens_per_second", "input_wait"):
            del line[name]
    kept["metrics.jsonl"] = json.dumps(lines).encode()
    return kept


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_take(seconds: float, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the clock of the loop: a step takes so long and nothing else takes time."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = clock.perf_counter = lambda: clock.now
    real = SeedTrainer.train

    def timed(trainer: SeedTrainer, number: int, batch: Any) -> None:
        real(trainer, number, batch)
        clock.now += seconds

    monkeypatch.setattr(SeedTrainer, "train", timed)
    monkeypatch.setattr(training, "time", clock)
    return clock


def checkpoint_of(out: Path) -> int:
    """Return the step at which a resume would start; -1 without a run."""
    if not (out / "run.json").exists():
        return -1
    return int(json.loads((out / "run.json").read_text())["checkpoint"])


def command(out: str, *options: str) -> list[str]:
    """Return the command line of a training on rows.pt with a checkpoint after every step."""
    return [
        *("train", "rows.pt", "--latents", "300", "--k", "4", "--seeds", "0", "--tokens", "2000"),
        *("--batch-size", "128", "--checkpoint-minutes", "0", "--out", out, *options),
    ]


def results_of(out: Path) -> dict[str, bytes]:
    """Return the content of all files but the state for a resume, which each rank has a part of."""
    return {name: content for name, content in files_of(out).items() if "/training/" not in name}


def saved(out: Path) -> dict[str, bytes]:
    """Return the files of a command, apart from times and the state for a resume."""
    files = results_of(out)
    return {name: content for name, content in files.items() if name != "stages.json"}


def names_of(size: int, step: int) -> list[str]:
    """Return the names of the files of a checkpoint by a number of ranks."""
    if size == 1:
        return [f"step-{step}.safetensors"]
    return [f"step-{step}/rank-{rank}-of-{size}.safetensors" for rank in range(size)]


def checkpoint_names(out: Path) -> list[str]:
    """Return the names of the files of all checkpoints of the first SAE."""
    training = out / "seed-0/training"
    return sorted(str(path.relative_to(training)) for path in training.rglob("*.safetensors"))
