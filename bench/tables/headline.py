"""Table of the README: a training step of several trainers, on a CPU and on a GPU."""

from collections.abc import Sequence
from typing import Any

from bench.committed import load, markdown
from bench.shapes import GPU_SHAPES, Shape

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
"""By name: rival and mode of the rows of a CPU, and of those of a GPU if it was measured."""


def table() -> str:
    """Return a row per trainer: milliseconds on each machine, and multiples of saefast's."""
    columns = [(load("train_step"), shape, 0) for shape in _ON_A_CPU]
    columns += [(load("gpu"), shape, 1) for shape in _ON_A_GPU]
    heads = [f"{('CPU', 'H100')[machine]} {shape.text}" for _, shape, machine in columns]
    lines = [["a training step", *heads], ["---"] + ["---:"] * len(heads)]
    for name, keys in _TRAINERS.items():
        lines.append([name, *(_cell(*column, keys) for column in columns)])
    return markdown(lines)


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
    # On the CPU all were timed in the same rounds, whose ratios vary less than medians.
    unit = ("gemm_ratio", "ms")[machine]
    return f"{printed}, {times[key][unit] / mine[unit]:.1f} x"


def caption() -> str:
    """Return where the numbers were taken."""
    cpu, gpu = load("train_step"), load("gpu")
    versions = cpu["machine"]["versions"]
    peers = ", ".join(
        f"{name} {versions[name]}" for name in ("sae-lens", "eai-sparsify", "dictionary-learning")
    )
    compared = {key[1] for key in _TRAINERS.values() if key[1] is not None}
    others = " and ".join(
        sorted(
            {
                row["commit"]
                for row in gpu["rows"]
                if row["case"] == "step"
                and (row["rival"], row["mode"]) in compared
                and "commit" in row
                and row["shape"] in [shape._asdict() for shape in _ON_A_GPU]
            }
        )
    )
    return (
        "Median times and multiples of saefast's; above each column (d, m, k, n): width, latents, "
        "active latents, rows. saefast selects the exact top k with its default settings, on the "
        "H100 with clipping and AuxK, as a CUDA graph; there the others run in bfloat16. CPU: "
        f"{cpu['machine']['cpu']}, {cpu['machine']['threads']} threads, torch "
        f"{versions['torch']}, {peers}; commits {cpu['commit']} and {gpu['commit']}, "
        f"the others on the H100 {others}."
    )
