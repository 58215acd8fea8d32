"""Interleaved timing: every rival runs once a round, beside one dense fp32 GEMM."""

import resource
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.cases import Shape
from saefast.progress import tracked

Run = Callable[[], object]


class Contestant(NamedTuple):
    """Something to time, whose result was checked."""

    rival: str
    mode: str
    run: Run
    agrees: bool


def gemm(x: Tensor, weight: Tensor) -> Run:
    """Return the unit of all ratios: torch.mm of one encode, in float32, into existing memory."""
    out = torch.empty(x.shape[0], weight.shape[0])
    transposed = weight.T
    return lambda: torch.mm(x, transposed, out=out)


def time_rounds(
    case: str,
    shape: Shape,
    unit: Run,
    contestants: Iterable[Contestant],
    rounds: int,
    *,
    of: str = "gemm",
) -> list[dict[str, Any]]:
    """Return a row for the unit, a torch.mm described by `of`, and one for each contestant.

    Ratios are medians over rounds of its time by the unit's.
    """
    contestants = list(contestants)
    wrong = [f"{c.rival} ({c.mode})" for c in contestants if not c.agrees]
    if wrong:
        raise RuntimeError(f"{case} {shape}: {', '.join(wrong)} does not agree; nothing was timed")
    runs = [Contestant("torch.mm", of, unit, True), *contestants]
    for one in runs:
        one.run()
    seconds: dict[int, list[float]] = {i: [] for i in range(len(runs))}
    label = f"{case} d={shape.d} m={shape.m} k={shape.k} n={shape.n}"
    for _ in tracked(range(rounds), label, unit="rounds", progress=True):
        for i, one in enumerate(runs):
            start = time.perf_counter()
            one.run()
            seconds[i].append(time.perf_counter() - start)
    return [
        {
            "case": case,
            "shape": shape._asdict(),
            "rival": one.rival,
            "mode": one.mode,
            "ms": round(statistics.median(seconds[i]) * 1e3, 3),
            "p20": round(_quantile(seconds[i], 0.2) * 1e3, 3),
            "p80": round(_quantile(seconds[i], 0.8) * 1e3, 3),
            "gemm_ratio": round(
                statistics.median(a / b for a, b in zip(seconds[i], seconds[0], strict=True)), 4
            ),
            "rounds": rounds,
            "agrees": one.agrees,
        }
        for i, one in enumerate(runs)
    ]


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def peak_memory() -> float:
    """Return the peak memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
