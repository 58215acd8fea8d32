"""The table that README begins with: a training step of several trainers, on a CPU and on a GPU."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.shapes import GPU_SHAPES, Shape

_RESULTS = Path(__file__).resolve().parent / "results"
_ON_A_CPU = (Shape(576, 16384, 32, 2048), Shape(768, 131072, 64, 1024))
_ON_A_GPU = (GPU_SHAPES["C2"], GPU_SHAPES["C1"])
_SAEFAST = (("saefast", "exact"), ("saefast", "exact graph"))
_TRAINERS = {
    "**saefast**": _SAEFAST,
    "torch, dense": (("torch", "dense"), ("torch", "bf16 dense")),
    "sparsify": (("sparsify", "default"), ("sparsify", "autocast")),
    "dictionary_learning": (("dictionary_learning", "default"), None),
    "SAELens": (("SAELens", "default"), ("SAELens", "autocast")),
}
"""By name, rival and mode of the rows of a CPU and of a GPU, where that was measured"""


def table() -> str:
    """Return a row per trainer: milliseconds on each machine, and multiples of saefast's."""
    columns = [(_load("train_step"), shape, 0) for shape in _ON_A_CPU]
    columns += [(_load("gpu"), shape, 1) for shape in _ON_A_GPU]
    heads = [f"{('CPU', 'H100')[machine]} {_size(shape)}" for _, shape, machine in columns]
    lines = [["a training step", *heads], ["---"] + ["---:"] * len(heads)]
    for name, keys in _TRAINERS.items():
        lines.append([name, *(_cell(*column, keys) for column in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(
    result: dict[str, Any],
    shape: Shape,
    machine: int,
    keys: Sequence[tuple[str, str] | None],
) -> str:
    case = ("train_step", "step")[machine]
    times = {
        (row["rival"], row["mode"]): row
        for row in result["rows"]
        if row["case"] == case and row["shape"] == shape._asdict() and row.get("ms") is not None
    }
    mine, key = times[_SAEFAST[machine]], keys[machine]
    if key is None or key not in times:
        return ""
    ms = times[key]["ms"]
    printed = f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms"
    if times[key] is mine:
        return printed
    # On the CPU all were timed in the same rounds, whose ratios are steadier than medians.
    unit = ("gemm_ratio", "ms")[machine]
    return f"{printed}, {times[key][unit] / mine[unit]:.1f} x"


def caption() -> str:
    """Return where the numbers were taken."""
    cpu, gpu = _load("train_step"), _load("gpu")
    versions = cpu["machine"]["versions"]
    peers = ", ".join(
        f"{name} {versions[name]}" for name in ("sae-lens", "eai-sparsify", "dictionary-learning")
    )
    return (
        "Median times and multiples of saefast's; (d, m, k, n) above each column. saefast selects "
        "the exact top k with its default settings, on the H100 with clipping and AuxK, captured; "
        "there the others run in bfloat16. CPU: "
        f"{cpu['machine']['cpu']}, {cpu['machine']['threads']} threads, torch "
        f"{versions['torch']}, {peers}; commits {cpu['commit']} and {gpu['commit']}."
    )


def _size(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})"


def _load(case: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((_RESULTS / f"{case}.json").read_text())
    return result
