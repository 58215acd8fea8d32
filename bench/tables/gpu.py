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
    stepped = {shape for case, shape, *_ in times if case == "step"}
    shapes = [shape for shape in GPU_SHAPES.values() if shape in stepped]
    shapes.sort(key=lambda shape: shape.gemm_flops)
    lines = [["", "", *(shape.text for shape in shapes)], ["---", "---", *["---:"] * len(shapes)]]
    for case, contestants in _CASES.items():
        head = case
        for rival, mode, name in contestants:
            cells = [_cell(times, case, shape, rival, mode) for shape in shapes]
            if any(cells):
                lines.append([head, name, *cells])
                head = ""
    return markdown(lines)


def caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: machine and commit of the numbers, and the definition of the floor."""
    result = result or load("gpu")
    machine, ceilings = result["machine"], result["ceilings"]
    versions = machine["versions"]
    contests = {(case, *keys) for case, all_keys in _CASES.items() for *keys, _ in all_keys}
    shown = [
        row
        for (case, _, rival, mode), row in _times(result).items()
        if (case, rival, mode) in contests
    ]
    names = [f"{name} {versions[name]}" for name in ("torch", "triton")]
    peers = [
        f"{name} {versions[name]}"
        for name in ("sae-lens", "eai-sparsify")
        if versions.get(name, "not installed") != "not installed"
    ]
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
        f"{', '.join(names + peers)}; {_commits({**result, 'rows': shown})}."
    )


def predictions(result: dict[str, Any] | None = None) -> str:
    """Return the table of predicted and measured steps, with a row for each shape."""
    times = _times(result or load("gpu"))
    lines = [["step, no clipping, no AuxK", "exact", "predicted", "bf16", "predicted"]]
    lines.append(["---"] + ["---:"] * 4)
    for name, predicted in PREDICTED.items():
        shape, cells = GPU_SHAPES[name], []
        for precision, ms in zip(Predicted._fields, predicted, strict=True):
            mode = f"{precision} graph, no clip, no AuxK"
            row = times.get(("step", shape, "saefast", mode))
            cells += [_ms(row["ms"]) if row else "", _ms(ms)]
        if cells[0] or cells[2]:
            lines.append([shape.text, *cells])
    return markdown(lines)


def predictions_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: units, machine and commit."""
    result = result or load("gpu")
    return f"Milliseconds. {result['machine']['device']}, at commit {result['commit']}."


def decodes(result: dict[str, Any] | None = None) -> str:
    """Return the table of decodes beside flexsae's, of the run in which both were timed."""
    result = result or load("gpu")
    [commit] = {row.get("commit") for row in result["rows"] if row["rival"] == "flexsae"}
    times = _times({"rows": [row for row in result["rows"] if row.get("commit") == commit]})
    shapes = sorted({key[1] for key in times if key[2] == "flexsae"}, key=lambda shape: shape.d)
    lines = [["", "", *(shape.text for shape in shapes)], ["---", "---", *["---:"] * len(shapes)]]
    for case, name in _DECODED.items():
        head = name
        for mode in ("fp32", "bf16"):
            cells = []
            for shape in shapes:
                ours, theirs = (
                    times[case, shape, rival, mode]["ms"] for rival in ("saefast", "flexsae")
                )
                cells.append(f"{_ms(ours)}, {_ms(theirs)}, {theirs / ours:.2f} x")
            lines.append([head, mode, *cells])
            head = ""
    return markdown(lines)


def decodes_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: contents of a cell, machine and commit."""
    result = result or load("gpu")
    [commit] = {row["commit"] for row in result["rows"] if row["rival"] == "flexsae"}
    return (
        "Milliseconds of saefast, of flexsae's kernel, and their quotient: above one, saefast is "
        f"faster. {result['machine']['device']}, at commit {commit}."
    )


def matchings(result: dict[str, Any] | None = None) -> str:
    """Return the table of matchings: a row for each contestant."""
    result = result or load("gpu")
    lines = [["", "features of each dictionary", "", "seconds", "TFLOP/s"]]
    lines.append(["---", "---", "---", "---:", "---:"])
    rows = [row for row in result["rows"] if row["case"] in ("match", "nearest") and "ms" in row]
    rows.sort(key=lambda row: (row["case"], row["shape"]["m"], row["rival"] != "saefast"))
    for row in rows:
        size = f"{row['shape']['m']:,} x {row['shape']['d']:,}"
        name = f"**{row['rival']}**" if row["rival"] == "saefast" else row["rival"]
        sides = "both directions" if row["sides"] == 2 else "one direction"
        what = f"{name}, {row['mode']}, {sides}"
        lines.append([row["case"], size, what, _ms(row["ms"] / 1e3), f"{row['gemm_tflops']:.0f}"])
    return markdown(lines)


def matchings_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: how the rows were measured, machine and commits."""
    result = result or load("gpu")
    versions = result["machine"]["versions"]
    rows = [row for row in result["rows"] if row["case"] in ("match", "nearest")]
    return (
        "Every contestant found all partners that were planted. Operations are those of the "
        f"products alone. {result['machine']['device']}, faiss-gpu {versions['faiss-gpu']}; "
        f"{_commits({**result, 'rows': rows})}."
    )


def end_to_end(result: dict[str, Any] | None = None) -> str:
    """Return the table of runs from text to trained SAEs."""
    result = result or load("gpu")
    lines = [["", "ms for 8,192 tokens", "tokens a second"], ["---", "---:", "---:"]]
    for row in result["rows"]:
        if row["case"] == "end to end":
            mode = row["mode"].partition(";")[0]
            lines.append([mode, _ms(row["ms"]), f"{row['tokens_per_second']:,}"])
    return markdown(lines)


def end_to_end_caption(result: dict[str, Any] | None = None) -> str:
    """Return the caption: model, sizes, machine and commit."""
    result = result or load("gpu")
    rows = [row for row in result["rows"] if row["case"] == "end to end"]
    [model] = {row["mode"].partition("; ")[2] for row in rows}
    shape, tokens = Shape(**rows[0]["shape"]), rows[0]["tokens"]
    return (
        f"{model}; {tokens:,} tokens, (d, m, k, n) = {shape.text}. Steps without those that "
        f"compile and capture. {result['machine']['device']}; "
        f"{_commits({**result, 'rows': rows})}."
    )


def _commits(result: dict[str, Any]) -> str:
    """Return the commits of the rows, and whose rows are of another than the result's."""
    rivals: dict[str, set[str]] = {}
    for row in result["rows"]:
        if (commit := row.get("commit", result["commit"])) != result["commit"]:
            rivals.setdefault(commit, set()).add(row["rival"])
    own = any("commit" not in row for row in result["rows"])
    parts = [f"at commit {result['commit']}"] if own else []
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
    return ", ".join([_ms(row["ms"]), *details])


def _ms(ms: float) -> str:
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"
