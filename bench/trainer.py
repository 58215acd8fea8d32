"""trainer: cost of train_saes beside the bare step, for one SAE and four, from a store on disk."""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import saefast
from bench.cases import Shape, draw
from bench.measure import gemm
from saefast.activations import StoreActivations, StoreWriter

SHAPES = (Shape(576, 16384, 32, 2048),)
_ROWS = 131_072  # rows of the store: 151 MB of bfloat16
_STEPS = 16  # steps of a run; the first quarter is not counted
_SEEDS = 4
_AUXK = saefast.AuxK(dead_after=10_000_000)  # no latent is dead in runs this short


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time a step: bare, in a run of one SAE, and in a run of four, for each SAE."""
    x, weights = draw(shape)
    unit = gemm(x, weights.w_enc)
    rounds = max(3, rounds // 3)  # a round is sixteen steps of five SAEs
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder) / "store", shape)
        stream = StoreActivations(store).batches(shape.n, seed=0)
        batches = [next(stream).x for _ in range(_STEPS)]
        seen: list[dict[str, float]] = []
        for number in range(rounds):
            unit()
            before = time.perf_counter()
            unit()
            one = {"torch.mm": time.perf_counter() - before, "bare": _bare(shape, batches)}
            for seeds in (1, _SEEDS):
                out = Path(folder) / f"run-{number}-{seeds}"
                one |= {
                    f"{name} {seeds}": value
                    for name, value in _run(shape, store, seeds, out).items()
                }
            seen.append(one)
    rows = []
    for name, mode in (
        ("bare", "FusedStep, batches in memory"),
        ("step 1", "train_saes, 1 SAE"),
        (f"step {_SEEDS}", f"train_saes, {_SEEDS} SAEs, each"),
    ):
        row = {
            "case": "trainer",
            "shape": shape._asdict(),
            "rival": "saefast",
            "mode": mode,
            "ms": round(statistics.median(one[name] for one in seen) * 1e3, 3),
            "gemm_ratio": _median_ratio(seen, name, "torch.mm"),
            "bare_ratio": _median_ratio(seen, name, "bare"),
            "rounds": rounds,
            "agrees": True,
        }
        if name != "bare":
            wait = name.replace("step", "wait")
            row["input_wait"] = round(statistics.median(one[wait] for one in seen), 5)
        rows.append(row)
    return rows


def _median_ratio(seen: list[dict[str, float]], name: str, other: str) -> float:
    return round(statistics.median(one[name] / one[other] for one in seen), 4)


def _bare(shape: Shape, batches: list[torch.Tensor]) -> float:
    """Return the median seconds of the steps that a run counts."""
    sae = saefast.SAE(shape.d, shape.m, k=shape.k, seed=0)
    rules = saefast.Rules(clip=1.0)  # as in TrainConfig
    step = saefast.FusedStep(sae, lr=1e-4, rules=rules, auxk=_AUXK)
    times = []
    for x in batches:
        before = time.perf_counter()
        step(x)
        times.append(time.perf_counter() - before)
    return statistics.median(times[_STEPS // 4 :])


def _run(shape: Shape, store: Path, seeds: int, out: Path) -> dict[str, float]:
    """Return the seconds of a step of each SAE, and the share of them spent waiting for rows."""
    config = saefast.TrainConfig(
        latents=shape.m,
        k=shape.k,
        seeds=tuple(range(seeds)),
        tokens=_STEPS * shape.n,
        batch_size=shape.n,
        auxk=_AUXK,
    )
    source = StoreActivations(store)
    saefast.train_saes(source, config, out=out, progress=False, log_every=1, keep_training=False)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    counted = [line for line in lines if line["sae"] == "seed-0"][_STEPS // 4 :]
    return {
        "step": statistics.median(line["seconds"] for line in counted) / seeds,
        "wait": statistics.mean(line["input_wait"] for line in counted),
    }


def _store(path: Path, shape: Shape) -> Path:
    with StoreWriter(path, shape.d) as writer:
        for number in range(_ROWS // shape.n):
            generator = torch.Generator().manual_seed(number)
            writer.append(torch.randn(shape.n, shape.d, generator=generator))
    return path
