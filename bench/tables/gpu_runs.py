"""Tables of whole runs on a GPU, matchings and text to SAEs, and all tables of each device."""

from collections.abc import Callable
from functools import partial
from typing import Any

from bench.committed import gpus, load
from bench.shapes import Shape
from bench.tables import gpu
from bench.tables.gpu import formatted, measured_at, table_of, versions_of


def matchings(result: dict[str, Any] | None = None) -> str:
    """Return the table of matchings: a row for each contestant."""
    lines = [["", "features of each dictionary", "", "seconds", "TFLOP/s"]]
    lines.append(["---", "---", "---", "---:", "---:"])
    rows = _of_cases(result or load("gpu"), "match", "nearest")
    rows.sort(key=lambda row: (row["case"], row["shape"]["m"], row["rival"] != "saefast"))
    for row in rows:
        size = f"{row['shape']['m']:,} x {row['shape']['d']:,}"
        name = f"**{row['rival']}**" if row["rival"] == "saefast" else row["rival"]
        sides = "both directions" if row["sides"] == 2 else "one direction"
        what = f"{name}, {row['mode']}, {sides}"
        lines.append(
            [row["case"], size, what, formatted(row["ms"] / 1e3), f"{row['gemm_tflops']:.0f}"]
        )
    return table_of(lines)


def matchings_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: how the rows were measured, machine and commits."""
    result = result or load("gpu")
    rows = _of_cases(result, "match", "nearest")
    if not rows:
        return ""
    faiss = versions_of(result, "faiss-gpu") if any(row["rival"] == "faiss" for row in rows) else []
    return (
        "Every contestant found all partners that were planted. Operations are those of the "
        f"products alone. {', '.join([result['machine']['device'], *faiss])}; "
        f"{measured_at({**result, 'rows': rows})}."
    )


def end_to_end(result: dict[str, Any] | None = None) -> str:
    """Return the table of runs from text to trained SAEs."""
    lines = [["", "ms for 8,192 tokens", "tokens a second"], ["---", "---:", "---:"]]
    for row in _of_cases(result or load("gpu"), "end to end"):
        mode = row["mode"].partition(";")[0]
        lines.append([mode, formatted(row["ms"]), f"{row['tokens_per_second']:,}"])
    return table_of(lines)


def end_to_end_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: model, sizes, machine and commit."""
    result = result or load("gpu")
    rows = _of_cases(result, "end to end")
    if not rows:
        return ""
    models = ", ".join(sorted({row["mode"].partition("; ")[2] for row in rows}))
    shape, tokens = Shape(**rows[0]["shape"]), rows[0]["tokens"]
    return (
        f"{models}; {tokens:,} tokens, (d, m, k, n) = {shape.text}. Steps without those that "
        f"compile and capture. {result['machine']['device']}; "
        f"{measured_at({**result, 'rows': rows})}."
    )


def _of_cases(result: dict[str, Any], *cases: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["case"] in cases and "ms" in row]


TABLES = {
    "": (gpu.table, gpu.caption),
    "_decodes": (gpu.decodes, gpu.decodes_caption),
    "_matchings": (matchings, matchings_caption),
    "_end_to_end": (end_to_end, end_to_end_caption),
}
"""Tables of every device, by the end of their names."""


def tables() -> dict[str, tuple[Callable[[], str], Callable[[], str]]]:
    """Return the tables that have rows, such as gpu_decodes, and gpu_h200_decodes of an H200."""
    return {
        name.replace("-", "_") + end: (partial(rows, result), partial(caption, result))
        for name in gpus()
        for result in [load(name)]
        for end, (rows, caption) in TABLES.items()
        if rows(result)
    }
