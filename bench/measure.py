"""Interleaved rounds: every rival runs once a round, beside one dense fp32 GEMM."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bench.cases import Shape

Run = Callable[[], object]


class Contestant(NamedTuple):
    """Something to time, whose result was checked."""

    rival: str
    mode: str
    run: Run
    agrees: bool


def gemm(x: Tensor, weight: Tensor) -> Run:
    """The unit of every ratio: torch.mm of one encode, in float32, into memory that is there."""
    out = torch.empty(x.shape[0], weight.shape[0])
    transposed = weight.T
    return lambda: torch.mm(x, transposed, out=out)


def time_rounds(
    case: str, shape: Shape, unit: Run, contestants: Iterable[Contestant], rounds: int
) -> list[dict[str, Any]]:
    """A row per contestant; every ratio is the median over rounds of its time by the unit's."""
    contestants = list(contestants)
    wrong = [f"{c.rival} ({c.mode})" for c in contestants if not c.agrees]
    if wrong:
        raise RuntimeError(f"{case} {shape}: {', '.join(wrong)} does not agree; nothing was timed")
    runs = [Contestant("torch.mm", "gemm", unit, True), *contestants]
    for one in runs:
        one.run()
    seconds: dict[int, list[float]] = {i: [] for i in range(len(runs))}
    label = f"{case} d={shape.d} m={shape.m} k={shape.k} n={shape.n}"
    for _ in tqdm(range(rounds), desc=label, disable=not sys.stderr.isatty()):
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
    """The most memory this process ever held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    import saefast

    info = saefast.build_info()
    versions = {}
    for package in ("saefast", "torch", "sae-lens", "eai-sparsify", "dictionary-learning"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "isa": info["isa"]["active"],
        "screen": info["screen"],
    }


def _cpu_name() -> str:
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor()
    return (
        f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')}), "
        f"{facts.get('cpu MHz')} MHz"
    )


def commit() -> str:
    """The commit of the checkout, marked where files differ from it."""
    root = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
