"""Table of a rehearsal: rows, faults, and its file."""

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.rehearsal.compiling import Compiled, Figures
from bench.rehearsal.pretended_gpu import GPUS
from bench.rehearsal.recording import Launched
from saefast.kernels.device import thread_registers

MAY_SPILL = {
    "update_columns": 176,
    "weight_gradients": 192,
    "miss_error": 88,
    "score_dead": 80,
    "prefix_rows": 48,
    "score_gradients": 32,
    "keep_above": 16,
    "join_parts": 8,
    "keep_best": 8,
    "keep_largest_of_row": 8,
    "score_candidates": 8,
    "sum_pieces": 8,
}
"""Bytes of a thread's stack that a kernel with spilled registers may use.

`update_columns` is faster with more warps, each of fewer registers (measured on an H100). The
others spill in few specialisations, most of them on one architecture under one version of Triton:
AuxK's products where tensor cores take operands from registers (sm_80, 86, 89, 120), although they
may have all 255 registers, `prefix_rows` with k = 1, and the rest at most four registers, each
loaded once or twice. `score_candidates` would need 156 registers of 128 to keep them all.
"""


class Row(NamedTuple):
    """One specialisation on one architecture."""

    launched: Launched
    architecture: int
    programs: int
    """number of rehearsed programs that launch it"""
    compiled: Compiled | str
    """result of the compilation, or its error"""


def faults(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a line for each fault that would fail, be slow or be wrong on a GPU."""
    for row in rows:
        described = row.launched.described
        where = f"sm_{row.architecture} {described['kernel']} ({described['constants']})"
        if isinstance(row.compiled, str):
            yield f"{where} does not compile: {row.compiled}"
            continue
        figures, source = row.compiled
        limit = GPUS[row.architecture].shared_bytes
        if figures.spills and figures.stack_bytes > MAY_SPILL.get(described["kernel"], 0):
            yield f"{where} spills {figures.stack_bytes} bytes ({figures.spills} loads)"
        registers = thread_registers(described["warps"])
        if figures.registers > registers:
            yield f"{where} takes {figures.registers} registers of {registers}"
        if figures.shared_bytes > limit:
            yield f"{where} takes {figures.shared_bytes} bytes of shared memory of {limit}"
        if source.wants_tensor_cores and not figures.tensor_core:
            yield f"{where} multiplies without tensor cores"
        if source.rereads and figures.async_copies:
            names = ", ".join(source.rereads)
            yield f"{where} writes and reads {names}, and a loop of it copies ahead"
        if source.narrow_products:
            yield f"{where} multiplies sizes in 32 bits: {', '.join(source.narrow_products)}"


def line(row: Row) -> str:
    """Format a row."""
    described = row.launched.described
    start = f"sm_{row.architecture:<4} {described['kernel']:20} {described['warps']:2} warps "
    if isinstance(row.compiled, str):
        return f"{start} {row.compiled}"
    figures = row.compiled.figures
    return (
        f"{start}{figures.registers:4} registers {figures.stack_bytes:4} B stack "
        f"{figures.shared_bytes:7} B shared  {figures.tensor_core:15} {described['constants']}"
        + (f"  odd: {described['odd']}" if described["odd"] else "")
    )


def summary(rows: Iterable[Row]) -> str:
    """Format the number of kernels, and of those that spill registers."""
    figures = [row.compiled.figures for row in rows if not isinstance(row.compiled, str)]
    some = [one.stack_bytes for one in figures if one.spills]
    most = f", at most {max(some)} bytes" if some else ""
    return f"{len(figures)} kernels compiled, {len(some)} of them with spills{most}"


def write(
    file: Path,
    triton_version: str,
    architectures: Collection[int],
    rows: Iterable[Row],
    kernels: Collection[str] = (),
) -> None:
    """Replace the file's entries of these architectures under one version of Triton by the rows.

    If `kernels` are named, only their entries are replaced; the rows must be theirs, and all of
    them.

    Each specialisation has a line of its own: the properties that distinguish it, and figures or
    the compiler's error by version of Triton and architecture.
    """
    lines: dict[str, dict[str, Any]] = {}
    for entry in json.loads(file.read_text())["kernels"] if file.exists() else []:
        by_version = entry.pop("triton")
        if not kernels or entry["kernel"] in kernels:
            for architecture in architectures:
                by_version.get(triton_version, {}).pop(str(architecture), None)
        kept = {version: by_sm for version, by_sm in by_version.items() if by_sm}
        if kept:
            lines[json.dumps(entry)] = {**entry, "triton": kept}
    for row in rows:
        described = row.launched.described
        entry = lines.setdefault(json.dumps(described), {**described, "triton": {}})
        made = row.compiled if isinstance(row.compiled, str) else [*row.compiled.figures]
        entry["triton"].setdefault(triton_version, {})[str(row.architecture)] = made
    written = ",\n".join(json.dumps(lines[key], separators=(",", ":")) for key in sorted(lines))
    figures = json.dumps(Figures._fields)
    file.write_text('{"figures": ' + figures + ',\n"kernels": [\n' + written + "\n]}\n")
