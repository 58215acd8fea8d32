"""Tables of several processes: measured on one machine, and the model of GPUs."""

from typing import Any

from bench.committed import load, markdown
from bench.shapes import Shape
from saefast.train.planning import MACHINES


def measured() -> str:
    """Return times, bytes and calls of a step by the number of processes."""
    rows = [row for row in load("ranks")["rows"] if row["rival"] == "saefast"]
    lines = [["", "step", "compute", "exchange", "waiting", "received", "calls", "same bits"]]
    lines.append(["---"] + ["---:"] * 7)
    for row in rows:
        parts = (row.get(f"{name}_ms") for name in ("compute", "exchange", "waiting"))
        times = ["" if part is None else f"{part:.0f} ms" for part in parts]
        received = f"{row['received'] / 1e6:.2f} MB" if "received" in row else ""
        calls, same = str(row.get("calls", "")), "yes" if row["agrees"] else "**no**"
        lines.append([row["mode"], f"{row['ms']:.0f} ms", *times, received, calls, same])
    return markdown(lines)


def measured_caption() -> str:
    """Return the caption of the measured table."""
    result = load("ranks")
    machine, first = result["machine"], result["rows"][0]
    return (
        f"Measured: one TopK step at (d, m, k, n) = {Shape(**first['shape']).text} without AuxK "
        f"and clipping, by processes of one thread each that share {machine['cores']} cores and "
        f"exchange by gloo; median of {first['rounds']} steps. The parts are means of rank 0 in "
        f"further steps, in which a barrier before every exchange separates waiting from it. "
        f"{machine['cpu']}, torch {machine['versions']['torch']}, commit {result['commit']}."
    )


def builds() -> str:
    """Return times of a step of one process before and after several processes could train."""
    lines = [["", "step", "ratio", "same bits"], ["---", "---:", "---:", "---:"]]
    for age, row in zip(("before", "now"), load("builds")["rows"], strict=True):
        same = "yes" if row["agrees"] else "**no**"
        lines.append([f"{age}, {row['mode']}", f"{row['ms']:.0f} ms", f"{row['ratio']:.2f}", same])
    return markdown(lines)


def builds_caption() -> str:
    """Return the caption of the table of builds."""
    result = load("builds")
    machine, first = result["machine"], result["rows"][0]
    return (
        f"Measured: steps of one process at (d, m, k, n) = {Shape(**first['shape']).text}, by two "
        f"builds of saefast in alternating processes; medians of {first['rounds']} rounds, and of "
        f"their ratios. {machine['cpu']}, {machine['threads']} threads."
    )


def memory() -> str:
    """Return the memory of the processes of a training by their number."""
    rows = _memory_rows()
    alone = rows[0]["peaks"][0]
    lines = [["", "largest memory of each process", "largest / one process", "same files"]]
    lines.append(["---", "---:", "---:", "---:"])
    for row in rows:
        peaks = ", ".join(f"{peak / 1e9:.2f}" for peak in row["peaks"])
        share, same = max(row["peaks"]) / alone, "yes" if row["agrees"] else "**no**"
        lines.append([row["mode"], f"{peaks} GB", f"{share:.2f}", same])
    return markdown(lines)


def memory_caption() -> str:
    """Return the caption of the table of memory."""
    result, first = load("ranks"), _memory_rows()[0]
    return (
        f"Measured: the largest resident memory of each process, libraries included, of a training "
        f"of {first['steps']} steps at (d, m, k, n) = {Shape(**first['shape']).text}, from its "
        f"beginning to the files at its end. Commit {result['commit']}."
    )


def _memory_rows() -> list[dict[str, Any]]:
    return [row for row in load("ranks")["rows"] if row["rival"] == "memory"]


def model() -> str:
    """Return the modelled time of a step on GPUs, divided as in saefast and data parallel."""
    rows = [row for row in load("ranks")["rows"] if row["rival"] == "model"]
    lines = [["model", "GPUs", "step", "efficiency", "received", "data parallel", "received"]]
    lines.append(["---"] + ["---:"] * 6)
    lines += [_modelled(row) for row in rows]
    return markdown(lines)


def _modelled(row: dict[str, Any]) -> list[str]:
    kind = row["mode"].removeprefix("h100-")
    return [
        f"{Shape(**row['shape']).text}, {kind}",
        str(row["ranks"]),
        f"{row['ms']:.1f} ms",
        f"{100 * row['efficiency']:.0f} %",
        f"{row['received'] / 1e6:.0f} MB",
        f"{row['data_parallel_ms']:.0f} ms",
        f"{row['data_parallel_received'] / 1e6:,.0f} MB",
    ]


def _rows_seconds() -> float:
    """Return the time in which a GPU receives the rows of the first modelled step in bfloat16."""
    row = next(row for row in load("ranks")["rows"] if row["rival"] == "model")
    shape = Shape(**row["shape"])
    return 2 * shape.n * shape.d / MACHINES["h100-25g"].network


def model_caption() -> str:
    """Return the caption of the model."""
    return (
        "A model, not measured: `saefast plan train --kind` for H100 GPUs, by which several "
        "processes cannot train yet; 32 and 64 are beyond the 16 processes whose bits are equal. "
        "Without AuxK and clipping, and without the distribution of the rows, 2 n d bytes, which "
        f"take {1e3 * _rows_seconds():.0f} ms at 25 Gbit/s. Data parallel: every GPU "
        "encodes and decodes its part of the rows, receives dense gradients and updates all "
        "weights."
    )
