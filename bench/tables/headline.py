"""Table of the README: a training step of several trainers, on a CPU and on a GPU."""

from collections.abc import Sequence
from typing import Any

from bench.committed import load, markdown, short_name
from bench.shapes import GPU_SHAPES, Shape
from bench.tables.gpu import measured_at

_Times = dict[tuple[str, str], dict[str, Any]]

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


def table(gpu: dict[str, Any] | None = None) -> str:
    """Return a row per trainer: milliseconds on each machine, and multiples of saefast's."""
    cpu, gpu = load("train_step"), gpu or load("gpu")
    device = short_name(gpu["machine"]["device"])
    columns = [(f"CPU {shape.text}", _timed(cpu, shape, 0), 0) for shape in _ON_A_CPU]
    columns += [(f"{device} {shape.text}", _timed(gpu, shape, 1), 1) for shape in _ON_A_GPU]
    columns = [column for column in columns if column[1]]
    lines = [["a training step", *(head for head, *_ in columns)]]
    lines.append(["---"] + ["---:"] * len(columns))
    for name, keys in _TRAINERS.items():
        lines.append([name, *(_cell(times, machine, keys) for _, times, machine in columns)])
    return markdown(lines)


def _timed(result: dict[str, Any], shape: Shape, machine: int) -> _Times:
    """Return the rows of the trainers at a shape, none unless saefast was timed there."""
    case = ("train_step", "step")[machine]
    shown = {keys[machine] for keys in _TRAINERS.values()}
    times = {
        (row["rival"], row["mode"]): row
        for row in result["rows"]
        if row["case"] == case
        and row["shape"] == shape._asdict()
        and row.get("ms") is not None
        and (row["rival"], row["mode"]) in shown
    }
    return times if _SAEFAST[machine] in times else {}


def _cell(times: _Times, machine: int, keys: Sequence[tuple[str, str] | None]) -> str:
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


def caption(gpu: dict[str, Any] | None = None) -> str:
    """Return where the numbers were taken."""
    cpu, gpu = load("train_step"), gpu or load("gpu")
    versions = cpu["machine"]["versions"]
    peers = ", ".join(
        f"{name} {versions[name]}" for name in ("sae-lens", "eai-sparsify", "dictionary-learning")
    )
    device = short_name(gpu["machine"]["device"])
    rows = [row for shape in _ON_A_GPU for row in _timed(gpu, shape, 1).values()]
    on_gpu = (
        f", on the {device} with clipping and AuxK, as a CUDA graph; there the others run in "
        "bfloat16"
    )
    measured = f" {device}: {measured_at({**gpu, 'rows': rows})}."
    return (
        "Median times, and multiples of saefast's; on the CPU both are divided by a float32 "
        "product of the same rounds first, so multiples differ from ratios of the printed times. "
        "Above each column (d, m, k, n): width, latents, active latents, rows. saefast selects the "
        "exact top k with its default settings"
        f"{on_gpu if rows else ''}. CPU: {cpu['machine']['cpu']}, {cpu['machine']['threads']} "
        f"threads, torch {versions['torch']}, {peers}; at commit {cpu['commit']}."
        f"{measured if rows else ''}"
    )
