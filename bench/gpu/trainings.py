"""`train_saes` from a store on disk with default settings, timed by its own reports."""

import importlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import saefast
from bench.gpu.contest import Contest, lowered, model
from bench.gpu.steps import VARIANTS
from bench.gpu.times import Ceilings, Unmeasured, floors_of, milliseconds
from bench.gpu.worker import Item
from bench.shapes import Shape
from saefast.activations import StoreWriter

STEPS = 40
_LAP = 5
"""Number of steps between two reports, each of which waits for the device."""
_SKIPPED = 3
"""Number of laps that are not counted: they compile, measure and capture."""
_BATCHES = 4
_LARGE = 1 << 16
"""Number of latents above which only the first variant is trained with several SAEs.

At its beginning and end such a run copies for longer than its steps take.
"""
_ROOM = 64e9
"""Bytes for the SAEs of a run: an H100's 79 GiB without data, contest and steps' results."""


class Reports:
    """Logger that keeps the reports of a run in memory."""

    def __init__(self) -> None:
        self.values: list[Mapping[str, Any]] = []

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep one line of one SAE."""
        self.values.append(values)

    def close(self) -> None:
        """Do nothing; required of a logger."""


def trainings(contest: Contest, ceilings: Unmeasured) -> Iterator[Item]:
    """Yield a run for each variant, of one SAE and of several."""
    for variant in VARIANTS:
        for saes in (1, together(contest.shape)):
            if saes > 1 and contest.shape.m > _LARGE and variant != VARIANTS[0]:
                continue
            facts = {
                "case": "step" if variant == VARIANTS[0] else f"step {variant}",
                "shape": contest.shape._asdict(),
                "rival": "saefast",
                "mode": f"train_saes, {saes} SAE{'s, each' if saes > 1 else ''}",
            }
            run = partial(_rows, contest, ceilings, variant, saes, facts)
            yield Item(f"{facts['case']}: {facts['mode']}", run, facts)


def together(shape: Shape) -> int:
    """Return how many SAEs are trained side by side: four, or two if four do not fit.

    A run ends with four times the weights of each SAE in float32: weights, both moments, and the
    copy that is returned; it also holds the encoder and the decoder in bfloat16.
    """
    of_one = (4 * 4 + 2) * 2 * shape.m * shape.d
    return 4 if 4 * of_one <= _ROOM else 2


def _rows(
    contest: Contest, ceilings: Unmeasured, variant: str, saes: int, facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if contest.device == "cuda":
        [of_unit] = milliseconds([contest.unit], 5)
    else:
        of_unit = [1.0]
    log = Reports()
    train(contest, log, _LAP, variant=variant, saes=saes)
    reports = [values for values in log.values if values["seed"] == 0]
    yield row_of(reports, facts, statistics.median(of_unit), ceilings(), contest, saes)


def row_of(
    reports: list[Mapping[str, Any]],
    facts: dict[str, Any],
    unit: float,
    ceilings: Ceilings,
    contest: Contest,
    saes: int,
) -> dict[str, Any]:
    """Return the row of one SAE's laps, with milliseconds per step and SAE."""
    if not reports[-1]["mse"] < reports[0]["mse"]:
        raise RuntimeError(f"does not learn: mse {reports[0]['mse']} and then {reports[-1]['mse']}")
    laps = reports[_SKIPPED:]
    times = sorted(1e3 * lap["seconds"] / (_LAP * saes) for lap in laps)
    ms = statistics.median(times)
    floor = floors_of(contest.shape, ceilings)["step"]
    return {
        **facts,
        "ms": round(ms, 4),
        "p20": round(times[len(times) // 5], 4),
        "p80": round(times[-1 - len(times) // 5], 4),
        "floor_ms": round(floor, 4),
        "floor_share": round(floor / ms, 3),
        "gemm_ratio": round(ms / unit, 3),
        "rounds": len(laps),
        "agrees": True,
        "tokens_per_second": round(1e3 * contest.shape.n / (ms * saes)),
        "input_wait": round(statistics.median(lap["input_wait"] for lap in laps), 4),
        "path": laps[-1]["path"],
        "active": round(statistics.median(lap["l0"] for lap in laps), 1),
    }


def train(
    contest: Contest,
    log: Reports,
    log_every: int,
    *,
    steps: int = STEPS,
    variant: str = "topk",
    saes: int = 1,
) -> None:
    """Train SAEs from a store of the contest's rows, and write their reports to `log`."""
    shape = contest.shape
    config = saefast.TrainConfig(
        latents=shape.m,
        k=shape.k,
        variant=variant,
        seeds=tuple(range(saes)),
        tokens=steps * shape.n,
        batch_size=shape.n,
        auxk=saefast.AuxK(dead_after=10_000_000),  # no latent dies in runs this short
    )
    weights = (
        lowered(contest.weights, contest.centred, contest.shape.k)
        if variant == "jumprelu"
        else contest.weights
    )
    # Given, since drawing large weights on the CPU takes longer than the run.
    initial = model(shape, weights, variant=variant)
    module = importlib.import_module("saefast.train.train")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(module, "loggers", return_value=[log]),
    ):
        saefast.train_saes(
            _store(contest, Path(folder) / "store"),
            config,
            initial=[initial] * saes,
            log_every=log_every,
            progress=False,
            device=contest.device,
        )


def _store(contest: Contest, path: Path) -> Path:
    """Write a store of some batches, in bfloat16."""
    with StoreWriter(path, contest.shape.d) as writer:
        for number in range(_BATCHES):
            # Not scaled: on larger rows, more latents of jumprelu are active than in its step.
            rows = contest.x.roll(number, 1)
            writer.append(rows.to(torch.bfloat16).cpu())
    return path
