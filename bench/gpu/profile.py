"""Profile of steps: time, memory traffic and operations of every kernel."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from bench.gpu.contest import Contest
from bench.gpu.steps import VARIANTS, default_step, repeated
from bench.gpu.times import Ceilings, Unmeasured, ceilings_item, ceilings_of
from bench.gpu.trainings import Reports, train
from bench.gpu.worker import Item
from bench.shapes import Shape, gpu_shape

_WARM_UP = 4
_REPEATS = 3
TRAINED = 10
"""Number of steps of `train_saes` between two reports.

The first ones compile, measure and are captured; the next ones are profiled.
"""

Work = Callable[[Shape], tuple[float, float]]
"""Function of the shape that returns bytes and operations of a kernel's launches in one step."""


def _product(shape: Shape) -> tuple[float, float]:
    n, d, m = shape.n, shape.d, shape.m
    return 2.0 * d * (n + m), shape.gemm_flops


WORK: dict[str, Work] = {
    r"^hot_groups": _product,
    # cuBLAS: the chunks of the encode, which also write their scores.
    r"gemm|nvjet|cutlass": _product,
    # Candidates: at least k weight rows for each row, in float32.
    r"^score_candidates": lambda s: (4.0 * s.n * s.k * s.d, 2.0 * s.n * s.k * s.d),
    r"^residual_rows": lambda s: (4.0 * s.n * s.k * s.d, 4.0 * s.n * s.k * s.d),
    # Both sides: weights and moments read and written; rows of e and x gathered.
    r"^update_columns": lambda s: (52.0 * s.m * s.d + 8.0 * s.n * s.k * s.d, 4.0 * s.n * s.k * s.d),
    r"^round_rows": lambda s: (6.0 * s.n * s.d, 0.0),
}
"""Least work of kernels from the sizes alone, by a pattern of their name."""


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield default steps at the shape `argument`, one with dead latents, and `train_saes`."""
    ceilings = ceilings_of(facts)
    yield ceilings_item(ceilings)
    contest = Contest(gpu_shape(argument))
    for variant in VARIANTS:
        profile = argument if variant == VARIANTS[0] else f"{argument} {variant}"
        step = partial(_profiled, contest, profile, ceilings, variant=variant)
        yield Item(f"profile {profile}", step)
    for name, of in (("dead", partial(_profiled, dead=True)), ("train_saes", _trained)):
        profile = f"{argument} {name}"
        yield Item(f"profile {profile}", partial(of, contest, profile, ceilings))


def _profiled(
    contest: Contest,
    profile: str,
    ceilings: Unmeasured,
    *,
    variant: str = "topk",
    dead: bool = False,
) -> Iterator[dict[str, Any]]:
    run = repeated(default_step(contest, variant), contest.x, graph=False, dead=dead)
    for _ in range(_WARM_UP):
        run()
    torch.cuda.synchronize()
    with _profiler() as profiler:
        for _ in range(_REPEATS):
            run()
        torch.cuda.synchronize()
    yield from rows_of(_launches(profiler), profile, contest.shape, ceilings())


class ProfiledReports(Reports):
    """Reports that profile the steps between the first two reports of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.profiler = _profiler()

    def write(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep one line, and begin or end the profile; a report has waited for the device."""
        super().write(label, step, values)
        if len(self.values) == 1:
            self.profiler.start()
        elif len(self.values) == 2:
            self.profiler.stop()


def _trained(contest: Contest, profile: str, ceilings: Unmeasured) -> Iterator[dict[str, Any]]:
    reports = ProfiledReports()
    train(contest, reports, TRAINED, steps=2 * TRAINED)
    launches = _launches(reports.profiler)
    yield from rows_of(launches, profile, contest.shape, ceilings(), steps=TRAINED)


def _profiler() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])


def _launches(profiler: torch.profiler.profile) -> list[tuple[str, float]]:
    return [
        (event.name, event.device_time_total)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    ]


def rows_of(
    launches: Iterable[tuple[str, float]],
    profile: str,
    shape: Shape,
    ceilings: Ceilings,
    *,
    steps: int = _REPEATS,
) -> Iterator[dict[str, Any]]:
    """Yield the summed launches of some steps, each a name and microseconds, the slowest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in launches:
        times[name].append(microseconds)
    for name, each in sorted(times.items(), key=lambda pair: -sum(pair[1])):
        seconds = sum(each) * 1e-6 / steps
        row: dict[str, Any] = {
            "profile": profile,
            "kernel": name,
            "calls": round(len(each) / steps),
            "ms": round(seconds * 1e3, 4),
        }
        moved, done = work_of(name, shape)
        if moved and seconds:
            floor = max(moved / ceilings.copy_bytes, done / ceilings.bf16_flops)
            row["bytes_per_second"] = round(moved / seconds)
            row["flops_per_second"] = round(done / seconds)
            row["floor_share"] = round(floor / seconds, 3)
        yield row


def work_of(kernel: str, shape: Shape) -> tuple[float, float]:
    """Return bytes and operations of a kernel in a step, or zeros if unknown."""
    for pattern, work in WORK.items():
        if re.search(pattern, kernel):
            return work(shape)
    return 0.0, 0.0
