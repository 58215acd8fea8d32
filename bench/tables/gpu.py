"""Tables of times on a GPU, from the rows of `bench gpu`."""

from typing import Any, NamedTuple

from bench.committed import load, markdown
from bench.shapes import GPU_SHAPES, Shape

_CASES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "step": (
        ("saefast", "exact graph", "**saefast**, exact"),
        ("saefast", "exact", "**saefast**, exact, no CUDA graph"),
        ("saefast", "bf16 graph", '**saefast**, `precision="bf16"`'),
        ("saefast", "bf16_weights graph", '**saefast**, `precision="bf16_weights"`'),
        ("saefast", "exact, a tenth dead", "**saefast**, exact, a tenth dead, no CUDA graph"),
        ("saefast", "train_saes, 1 SAE", "**saefast**, `train_saes` from a store"),
        ("torch", "bf16 dense", "torch, dense, bf16"),
        ("torch.compile", "bf16 dense", "torch.compile, dense, bf16"),
        ("SAELens", "autocast", "SAELens, bf16 autocast"),
        ("sparsify", "autocast", "sparsify, bf16 autocast"),
    ),
    "encode": (
        ("saefast", "exact", "**saefast**, exact"),
        ("saefast", "bf16", '**saefast**, `precision="bf16"`'),
        ("torch", "fp32 dense", "torch, dense, fp32"),
        ("torch", "bf16 dense", "torch, dense, bf16"),
        ("torch.compile", "bf16 dense", "torch.compile, dense, bf16"),
        ("SAELens", "autocast", "SAELens, bf16 autocast"),
        ("sparsify", "autocast", "sparsify, bf16 autocast"),
    ),
    "threshold": (
        ("saefast", "exact", "**saefast**, exact"),
        ("saefast", "bf16", '**saefast**, `precision="bf16"`'),
        ("torch", "bf16 dense", "torch, dense, bf16"),
    ),
    "batch_topk": (
        ("saefast", "exact", "**saefast**, exact"),
        ("saefast", "bf16", '**saefast**, `precision="bf16"`'),
        ("torch", "bf16 dense", "torch, dense, bf16"),
    ),
    "decode": (
        ("saefast", "fp32", "**saefast**, fp32"),
        ("saefast", "bf16", "**saefast**, bf16"),
        ("torch", "fp32 embedding_bag", "torch, embedding_bag, fp32"),
        ("torch", "bf16 embedding_bag", "torch, embedding_bag, bf16"),
        ("torch.compile", "bf16 dense", "torch.compile, dense, bf16"),
        ("sparsify", "fp32", "sparsify, fp32"),
        ("sparsify", "bf16", "sparsify, bf16"),
    ),
    "decode+backward": (
        ("saefast", "fp32", "**saefast**, fp32"),
        ("saefast", "bf16", "**saefast**, bf16"),
        ("torch", "fp32 embedding_bag", "torch, embedding_bag, fp32"),
        ("torch.compile", "bf16 dense", "torch.compile, dense, bf16"),
        ("sparsify", "fp32", "sparsify, fp32"),
        ("sparsify", "bf16", "sparsify, bf16"),
    ),
    "update": (
        ("saefast", "clipped", "**saefast**, clipped"),
        ("saefast", "no clip", "**saefast**, no clip"),
        ("torch", "fused Adam alone", "torch, fused Adam, given its gradients"),
    ),
}
"""Rows of each case as rival, mode and name.

The others are compared with the first row of a case. Rows without any time are left out.
"""

_DECODED = {
    "decode": "decode",
    "decode+backward": "with gradients",
    "decode+loss+backward": "with squared error and gradients",
}

_PREDICTED_MODE = "{} graph, no clip, no AuxK"
_Times = dict[tuple[str, Shape, str, str], dict[str, Any]]


class Predicted(NamedTuple):
    """Predicted milliseconds of a step without clipping and AuxK, made before the first GPU run."""

    exact: float
    bf16: float


PREDICTED = {
    "C2": Predicted(3.1, 2.7),
    "mid": Predicted(17.0, 12.5),
    "C1": Predicted(49.0, 36.0),
}


def table(result: dict[str, Any] | None = None) -> str:
    """Return the table of contestants: milliseconds, share of the floor, ratio to saefast."""
    times = _times(result or load("gpu"))
    shapes = _stepped(times)
    lines = _heads(shapes)
    for case, contestants in _CASES.items():
        head = case
        for rival, mode, name in contestants:
            cells = [_cell(times, case, shape, rival, mode) for shape in shapes]
            if any(cells):
                lines.append([head, name, *cells])
                head = ""
    return table_of(lines)


def caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: machine and commit of the numbers, and the definition of the floor."""
    result = result or load("gpu")
    machine = result["machine"]
    contests = {(case, *keys) for case, all_keys in _CASES.items() for *keys, _ in all_keys}
    times = _times(result)
    shapes = _stepped(times)
    shown = [
        row
        for (case, shape, rival, mode), row in times.items()
        if (case, rival, mode) in contests and shape in shapes
    ]
    if not shown:
        return ""
    ceilings = result["ceilings"]
    facts = versions_of(result, "torch", "triton", "sae-lens", "eai-sparsify")
    facts += [f"top k selected in {by}" for by in _selection(machine.get("backends", {}))]
    return (
        "Milliseconds. Percentages are shares of a floor: the time that operations and bytes of "
        "the case take at the speed of this GPU's own large products and copies "
        f"({ceilings['bf16_flops'] * 1e-12:.0f} TFLOP/s in bfloat16, "
        f"{ceilings['copy_bytes'] * 1e-12:.2f} TB/s). Multiples are of the time of the case's "
        "first row, so values below one are faster. Steps of saefast are those that "
        "`train_saes` takes by default, with clipping, AuxK and unit norm; dense steps "
        "have none of these. The update is a part of the step: Adam alone is given the "
        "gradients that saefast sums up itself. (d, m, k, n) above each column. "
        f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, "
        f"{', '.join(facts)}; {measured_at({**result, 'rows': shown})}."
    )


def _stepped(times: _Times) -> list[Shape]:
    """Return the shapes at which steps were timed, the smallest product first."""
    stepped = {shape for case, shape, *_ in times if case == "step"}
    shapes = [shape for shape in GPU_SHAPES.values() if shape in stepped]
    return sorted(shapes, key=lambda shape: shape.gemm_flops)


def versions_of(result: dict[str, Any], *packages: str) -> list[str]:
    """Return the packages that were installed, each with its version."""
    versions = result["machine"].get("versions", {})
    found = {name: versions.get(name, "not installed") for name in packages}
    return [f"{name} {version}" for name, version in found.items() if version != "not installed"]


def _selection(backends: dict[str, str]) -> list[str]:
    """Return the language of the kernels that select the top k, if the result records it."""
    live = [name for name, state in backends.items() if state == "live"]
    languages = {"cuda": "CUDA C++", "triton": "Triton"}
    return [text for name, text in languages.items() if name in live][:1]


def predictions(result: dict[str, Any] | None = None) -> str:
    """Return the table of predicted and measured steps, with a row for each shape."""
    times = _times(result or load("gpu"))
    lines = [["step, no clipping, no AuxK", "exact", "predicted", "bf16", "predicted"]]
    lines.append(["---"] + ["---:"] * 4)
    for name, predicted in PREDICTED.items():
        shape, cells = GPU_SHAPES[name], []
        for precision, ms in zip(Predicted._fields, predicted, strict=True):
            row = times.get(("step", shape, "saefast", _PREDICTED_MODE.format(precision)))
            cells += [formatted(row["ms"]) if row else "", formatted(ms)]
        if cells[0] or cells[2]:
            lines.append([shape.text, *cells])
    return table_of(lines)


def predictions_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: units, machine and commit."""
    result = result or load("gpu")
    modes = [_PREDICTED_MODE.format(precision) for precision in Predicted._fields]
    rows = [row for row in result["rows"] if row["case"] == "step" and row["mode"] in modes]
    if not rows:
        return ""
    return f"Milliseconds. {result['machine']['device']}, {measured_at({**result, 'rows': rows})}."


def decodes(result: dict[str, Any] | None = None) -> str:
    """Return the table of decodes beside flexsae's, of the run in which both were timed."""
    pairs = _beside_flexsae(result or load("gpu"))
    shapes = sorted({shape for _, shape, _ in pairs}, key=lambda shape: shape.d)
    lines = _heads(shapes)
    for case, name in _DECODED.items():
        head = name
        for mode in ("fp32", "bf16"):
            cells = []
            for shape in shapes:
                rows = pairs.get((case, shape, mode))
                ours, theirs = (row["ms"] for row in rows) if rows else (0.0, 0.0)
                cells.append(
                    f"{formatted(ours)}, {formatted(theirs)}, {theirs / ours:.2f} x" if rows else ""
                )
            if any(cells):
                lines.append([head, mode, *cells])
                head = ""
    return table_of(lines)


def decodes_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: contents of a cell, machine and commit."""
    result = result or load("gpu")
    pairs = _beside_flexsae(result).values()
    commits = sorted({row.get("commit", result["commit"]) for pair in pairs for row in pair})
    if not commits:
        return ""
    return (
        "Milliseconds of saefast, of flexsae's kernel, and their quotient: above one, saefast is "
        f"faster. {result['machine']['device']}, at commit {', '.join(commits)}."
    )


def _beside_flexsae(
    result: dict[str, Any],
) -> dict[tuple[str, Shape, str], tuple[dict[str, Any], dict[str, Any]]]:
    """Return the rows of saefast and flexsae that one run timed, by case, shape and mode."""
    times = _times(result)
    return {
        (row["case"], Shape(**row["shape"]), row["mode"]): (row, theirs)
        for row in result["rows"]
        # A row has ratios to the rivals of its own run.
        if f"flexsae {row['mode']}" in row.get("times_faster_than", {})
        and (theirs := times.get((row["case"], Shape(**row["shape"]), "flexsae", row["mode"])))
    }


def _heads(shapes: list[Shape]) -> list[list[str]]:
    return [["", "", *(shape.text for shape in shapes)], ["---", "---", *["---:"] * len(shapes)]]


def table_of(lines: list[list[str]]) -> str:
    """Return the table, or nothing if there are only its heads."""
    return markdown(lines) if len(lines) > 2 else ""


def measured_at(result: dict[str, Any]) -> str:
    """Return the commits of the rows, and whose rows are of another than the result's."""
    rivals: dict[str, set[str]] = {}
    for row in result["rows"]:
        rivals.setdefault(row.get("commit", result["commit"]), set()).add(row["rival"])
    parts = [f"at commit {result['commit']}"] if rivals.pop(result["commit"], None) else []
    parts += [f"{', '.join(sorted(names))} at {commit}" for commit, names in rivals.items()]
    return "; ".join(parts)


def _times(result: dict[str, Any]) -> _Times:
    return {
        (row["case"], Shape(**row["shape"]), row["rival"], row["mode"]): row
        for row in result["rows"]
        if "ms" in row
    }


def _cell(times: _Times, case: str, shape: Shape, rival: str, mode: str) -> str:
    row = times.get((case, shape, rival, mode))
    if row is None:
        return ""
    first = times.get((case, shape, *_CASES[case][0][:2]))
    details = (
        [f"{100 * row['floor_share']:.0f} %"] if rival == "saefast" and row["floor_share"] else []
    )
    if first is not None and first is not row:
        details.append(f"{row['ms'] / first['ms']:.2f} x")
    return ", ".join([formatted(row["ms"]), *details])


def formatted(ms: float) -> str:
    """Format milliseconds or seconds."""
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"
