"""Where the time of a default step goes: every kernel, with what it moves and multiplies."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from bench.gpu_contest import Contest
from bench.gpu_steps import VARIANTS, default_step
from bench.gpu_times import Ceilings, Unmeasured, ceilings_item, ceilings_of
from bench.gpu_worker import Item
from bench.shapes import Shape, gpu_shape

_WARM_UP = 4
_REPEATS = 3

Work = Callable[[Shape], tuple[float, float]]
"""Bytes and operations of all launches of a kernel in one step."""


def _product(shape: Shape) -> tuple[float, float]:
    n, d, m = shape.n, shape.d, shape.m
    return 2.0 * d * (n + m), shape.gemm_flops


WORK: dict[str, Work] = {
    r"^hot_groups": _product,
    # cuBLAS: the chunks of the encode, which also write their scores.
    r"gemm|nvjet|cutlass": _product,
    # Candidates: at least k weight rows of a row, in float32.
    r"^score_candidates": lambda s: (4.0 * s.n * s.k * s.d, 2.0 * s.n * s.k * s.d),
    r"^residual_rows": lambda s: (4.0 * s.n * s.k * s.d, 4.0 * s.n * s.k * s.d),
    # Both sides: weights and moments read and written; rows of e and x gathered.
    r"^update_columns": lambda s: (52.0 * s.m * s.d + 8.0 * s.n * s.k * s.d, 4.0 * s.n * s.k * s.d),
    r"^round_rows": lambda s: (6.0 * s.n * s.d, 0.0),
}
"""By a pattern of the kernel's name: the least work, from the sizes alone."""


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the default step of each variant at the shape `argument`."""
    ceilings = ceilings_of(facts)
    yield ceilings_item(ceilings)
    contest = Contest(gpu_shape(argument))
    for variant in VARIANTS:
        profile = argument if variant == VARIANTS[0] else f"{argument} {variant}"
        yield Item(f"profile {profile}", partial(_profiled, contest, variant, profile, ceilings))


def _profiled(
    contest: Contest, variant: str, profile: str, ceilings: Unmeasured
) -> Iterator[dict[str, Any]]:
    step = default_step(contest, variant)
    for _ in range(_WARM_UP):
        step(contest.x)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(_REPEATS):
            step(contest.x)
        torch.cuda.synchronize()
    launches = [
        (event.name, event.device_time_total)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    ]
    yield from rows_of(launches, profile, contest.shape, ceilings())


def rows_of(
    launches: Iterable[tuple[str, float]], profile: str, shape: Shape, ceilings: Ceilings
) -> Iterator[dict[str, Any]]:
    """Sum up the launches of `_REPEATS` steps, each a name and microseconds; slowest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in launches:
        times[name].append(microseconds)
    for name, each in sorted(times.items(), key=lambda pair: -sum(pair[1])):
        seconds = sum(each) * 1e-6 / _REPEATS
        row: dict[str, Any] = {
            "profile": profile,
            "kernel": name,
            "calls": round(len(each) / _REPEATS),
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
    """Return bytes and operations of a kernel in a step, or zeros where they are not known."""
    for pattern, work in WORK.items():
        if re.search(pattern, kernel):
            return work(shape)
    return 0.0, 0.0
