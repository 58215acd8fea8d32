"""Tables of README and documentation, made of committed rows.

`python -m bench.table` rewrites the text between `<!-- table: NAME -->` and
`<!-- end of table -->`, and the figures of the study.
"""

import re
import statistics
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench.cases import SHAPES, Shape
from bench.committed import load, markdown
from bench.study import claims, figures, tables
from bench.tables import checksums as checksums_table
from bench.tables import cpu_step as cpu_step_table
from bench.tables import evaluations as evaluation_tables
from bench.tables import gpu as gpu_table
from bench.tables import gpu_runs
from bench.tables import headline as headline_table
from bench.tables import newcomer as newcomer_table
from bench.tables import ranks as ranks_table
from bench.tables import study as study_tables
from bench.tables import sweep as sweep_table
from bench.tables import trust as trust_table

CHECKOUT = Path(__file__).resolve().parent.parent
_WORLDS_WITHOUT_OWN_NUMBERS = {"ecd6cc3", "3745b0b"}
"""Commits of quality rows at which PlantedWorld drew the numbers of an SAE of the same seed."""
_NAMES = {
    ("saefast", "exact"): "**saefast**, exact",
    ("saefast", "bf16"): '**saefast**, `precision="bf16"`',
    ("saefast", "exact avx2"): "**saefast**, exact, AVX2 forced",
    ("saefast", "autograd"): "**saefast** ops in a loop of your own",
    ("torch", "dense"): "torch, dense",
    ("torch.compile", "dense"): "torch.compile, dense",
    ("sparsify", "default"): "sparsify",
    ("dictionary_learning", "default"): "dictionary_learning",
    ("SAELens", "default"): "SAELens",
}


def table() -> str:
    """Return the table of encodes and training steps, in multiples of a dense fp32 encode GEMM."""
    first, *_ = SHAPES
    columns = [("encode", first), *(("train_step", shape) for shape in SHAPES)]
    cells = [_ratios(case, shape) for case, shape in columns]
    heads = ["", f"encode {first.text}", *(f"step {shape.text}" for shape in SHAPES)]
    lines = [heads, ["---"] + ["---:"] * len(columns)]
    for rival, name in _NAMES.items():
        lines.append([name, *(cell.get(rival, "") for cell in cells)])
    return markdown(lines)


def caption() -> str:
    """Return the caption: machine, versions and commits of the numbers."""
    result = load("train_step")
    machine, versions = result["machine"], result["machine"]["versions"]
    peers = ", ".join(
        f"{name} {versions[name]}" for name in ("sae-lens", "eai-sparsify", "dictionary-learning")
    )
    return (
        f"Multiples of one fp32 `torch.mm` of the encode, timed in the same rounds; (d, m, k, n) "
        f"above each column. {machine['cpu']}, {machine['threads']} threads, torch "
        f"{versions['torch']}, {peers}; encode at commit {load('encode')['commit']}, step at "
        f"commit {result['commit']}."
    )


def quality() -> str:
    """Return explained variance, dead latents and time of each trainer, by data and variant."""
    rows = load("quality")["rows"]
    columns = list(dict.fromkeys((row["data"], row["mode"]) for row in rows))
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    names = {"topk": "TopK", "batchtopk": "BatchTopK"}
    lines = [["", *(f"{data}, {names[mode]}" for data, mode in columns)]]
    lines.append(["---"] + ["---:"] * len(columns))
    for rival in rivals:
        cells = [
            _judged([row for row in rows if (row["rival"], row["data"], row["mode"]) == key])
            for key in ((rival, data, mode) for data, mode in columns)
        ]
        lines.append(["**saefast**" if rival == "saefast" else rival, *cells])
    return markdown(lines)


def _judged(rows: list[dict[str, Any]]) -> str:
    """Format the means over seeds."""
    if not rows:
        return ""
    explained, dead, seconds = (
        statistics.mean(row[name] for row in rows)
        for name in ("explained_variance", "dead_share", "seconds")
    )
    return f"{explained:.3f}, {100 * dead:.1f} %, {seconds:.0f} s"


def _start(commits: Collection[str]) -> str:
    """Return a sentence on rows whose planted world had no random numbers of its own."""
    if _WORLDS_WITHOUT_OWN_NUMBERS.isdisjoint(commits):
        return ""
    return (
        " At these commits all trainers began at directions of the planted data, by the same seed."
    )


def quality_caption() -> str:
    """Return the caption: data, seeds and commits of the trainings."""
    result = load("quality")
    first = {row["data"]: row for row in reversed(result["rows"])}
    seeds = len({row["seed"] for row in result["rows"]})
    trained = "; ".join(
        f"{data}: {Shape(**row['shape']).text}, {row['tokens']:,} tokens"
        for data, row in reversed(first.items())
    )
    commits: dict[str, list[str]] = {}
    for rival, commit in dict.fromkeys((row["rival"], row["commit"]) for row in result["rows"]):
        commits.setdefault(commit, []).append(rival)
    measured = ", ".join(f"{commit} ({', '.join(rivals)})" for commit, rivals in commits.items())
    return (
        "Variance explained on held-out rows, share of latents that fire on none of them, and wall "
        "time (one after the other on a shared machine; the first table compares speed). All start "
        f"from the same weights, with the same batches and learning rates. {trained}; {seeds} seed"
        f"{'s' * (seeds > 1)}. At commit {measured}.{_start(commits)}"
    )


def matching() -> str:
    """Return the times of certified matchings by size, and of other solvers beside them."""
    rows = [row for row in load("match")["rows"] if row["case"] == "match one to one"]
    lines = [["features, width", "all", "its solver", "memory", "other solvers, alone"]]
    lines.append(["---:"] * 4 + ["---"])
    for mine in (row for row in rows if row["rival"] == "saefast"):
        others = [row for row in rows if row["shape"] == mine["shape"] and row is not mine]
        memory = f"{mine['peak_gb']:.1f} GB" if "peak_gb" in mine else ""
        lines.append(
            [
                f"{mine['shape']['m']:,}, {mine['shape']['d']}",
                _seconds(mine["ms"]),
                _seconds(mine["solver_ms"]),
                memory,
                ", ".join(f"{row['rival']} {_beside(row)}" for row in others),
            ]
        )
    return markdown(lines)


def matching_caption() -> str:
    """Return the caption: data of the matchings, and times of the search alone."""
    result = load("match")
    found = {
        (row["shape"]["d"], row["mode"]): row
        for row in result["rows"]
        if row["case"] == "match neighbours"
    }
    search = "; ".join(
        f"{row['gemm_ratio']:.2f} and {row['faiss_ratio']:.2f} at width {d}"
        for (d, mode), row in found.items()
        if mode == "saefast"
    )
    commits = ", ".join(dict.fromkeys(row["commit"] for row in result["rows"]))
    machine = result["machine"]
    return (
        "Dictionaries share 40 % of their features; the others are random. All matchings are "
        "certified. The other sparse solvers solve the last sparse graph that saefast built, and "
        "do not bound the pairs outside of it. Finding the 64 nearest of 16,384 features, exact to "
        "float64, takes these shares of the time of one fp32 `torch.mm` of all cosines, and of "
        f"FAISS's IndexFlatIP: {search}. {machine['cpu']}, {machine['threads']} threads; at commit "
        f"{commits}."
    )


def _seconds(ms: float) -> str:
    return f"{ms / 1e3:.1f} s" if ms < 10_000 else f"{ms / 1e3:.0f} s"


def _beside(row: dict[str, Any]) -> str:
    return _seconds(row["ms"]) if row["ms"] is not None else f"({row['note']})"


def inside() -> str:
    """Return the times of peers' training steps, alone and with saefast inside."""
    lines = [["a training step of", "alone", "saefast inside", "speed-up"]]
    lines.append(["---", "---:", "---:", "---:"])
    alone: dict[str, Any] = {}
    for row in load("inside")["rows"]:
        if "speedup" in row:
            name = f"{row['rival']} {row['mode'].removesuffix(', saefast inside')}"
            times = [_seconds(each["ms"]) for each in (alone, row)]
            lines.append([name, *times, f"{row['speedup']:.1f} x"])
        alone = row
    return markdown(lines)


def inside_caption() -> str:
    """Return the caption: machine and commit of the numbers."""
    result = load("inside")
    shape = Shape(**result["rows"][0]["shape"]).text
    machine = result["machine"]
    return (
        "Trainers of the libraries, with their clipping and optimisers where they have their own; "
        f"(d, m, k, n) {shape}. {machine['cpu']}, {machine['threads']} threads; at commit "
        f"{result['commit']}."
    )


def _ratios(case: str, shape: Shape) -> dict[tuple[str, str], str]:
    return {
        (row["rival"], row["mode"]): f"{row['gemm_ratio']:.2f}"
        for row in load(case)["rows"]
        if row["case"] == case and row["shape"] == shape._asdict()
    }


TABLES = {
    "headline": (headline_table.table, headline_table.caption),
    "speed": (table, caption),
    "checksums": (checksums_table.table, checksums_table.caption),
    "cpu_step": (cpu_step_table.table, cpu_step_table.caption),
    "quality": (quality, quality_caption),
    "matching": (matching, matching_caption),
    "inside": (inside, inside_caption),
    **gpu_runs.tables(),
    "gpu_predictions": (gpu_table.predictions, gpu_table.predictions_caption),
    "ranks": (ranks_table.measured, ranks_table.measured_caption),
    "ranks_builds": (ranks_table.builds, ranks_table.builds_caption),
    "ranks_memory": (ranks_table.memory, ranks_table.memory_caption),
    "ranks_model": (ranks_table.model, ranks_table.model_caption),
    "sweep": (sweep_table.measured, sweep_table.measured_caption),
    "sweep_model": (sweep_table.model, sweep_table.model_caption),
    "demo": (study_tables.demo, study_tables.demo_caption),
    "newcomer": (newcomer_table.table, newcomer_table.caption),
    "evaluations": (evaluation_tables.by_condition, evaluation_tables.caption),
    "evaluations_by_group": (evaluation_tables.by_group,),
    "evaluations_surface": (evaluation_tables.surface,),
    "evaluations_differences": (evaluation_tables.differences,),
    "evaluations_prediction": (evaluation_tables.prediction,),
    "lowrank": (study_tables.lowrank, study_tables.lowrank_caption),
    "recovery": (study_tables.recovery, study_tables.recovery_caption),
    "digits": (study_tables.digits, study_tables.digits_caption),
    "validity": (study_tables.validity, study_tables.validity_caption),
    "trust": (trust_table.table, trust_table.caption),
    "study_trends": (claims.trends,),
    "study_claims": (claims.claims,),
    "study_recurrence": (tables.recurrence, tables.caption),
    "study_worth": (tables.worth,),
    "study_subspaces": (tables.subspaces,),
    "study_language_model": (tables.language_model,),
    "study_membership": (tables.membership,),
    "study_pooling": (tables.pooling,),
    "study_cost": (tables.cost,),
}


_MARKED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end of table -->", re.DOTALL)


def marked(page: str) -> list[str]:
    """Return the names of the tables that a page shows."""
    return _MARKED.findall(page)


def filled(page: str) -> str:
    """Return the page with its tables made again."""
    return _MARKED.sub(lambda found: _shown(found[1]), page)


def _shown(name: str) -> str:
    parts = "\n\n".join(part() for part in TABLES[name])
    return f"<!-- table: {name} -->\n{parts}\n<!-- end of table -->"


def main(pages: Sequence[str]) -> None:
    """Rewrite the tables of README and documentation, or of some pages."""
    chosen = [Path(page) for page in pages] or [
        *CHECKOUT.glob("*.md"),
        *CHECKOUT.glob("docs/**/*.md"),
    ]
    for page in chosen:
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
            print(page)
    figures.write()


if __name__ == "__main__":
    main(sys.argv[1:])
