"""Command line of the benchmarks: `python -m bench CASE --json FILE`."""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import record
from bench.cases import Shape

CASES = (
    "encode",
    "inference",
    "decode",
    "train_step",
    "cpu_step",
    "trainer",
    "paths",
    "quality",
    "memory",
    "stability",
    "subspace",
    "worlds",
    "checksums",
    "inside",
    "ranks",
    "sweep",
)
_OWN = (
    "builds",
    "gpu",
    "match",
    "studies",
    "study",
    "demo",
    "evaluations",
    "newcomer",
    "trust",
    "sanitize",
)
"""Benchmarks with their own shapes and options."""


def main() -> int:
    """Time one case, print its table and write its rows."""
    if sys.argv[1:2] in [[name] for name in _OWN]:
        return int(importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m bench", description=main.__doc__)
    parser.add_argument("case", choices=(*CASES, *_OWN))
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--shape", help="one shape only, as d,m,k,n")
    arguments = parser.parse_args()
    if arguments.shape:
        shape = Shape(*map(int, arguments.shape.split(",")))
        rows = _race(arguments.case, shape, arguments.rounds)
    else:
        shapes = importlib.import_module(f"bench.{arguments.case}").SHAPES
        rows = [
            row
            for shape in shapes
            for row in _race_in_own_process(arguments.case, shape, arguments.rounds)
        ]
    if arguments.json:
        result = {"machine": record.machine(), "commit": record.commit(), "rows": rows}
        record.write(arguments.json, result)
        if not arguments.shape:
            print(f"wrote {arguments.json}")
    return 0


def _race(case: str, shape: Shape, rounds: int) -> list[dict[str, Any]]:
    rounds = rounds if shape.m < 100_000 else max(3, rounds // 3)
    rows: list[dict[str, Any]] = importlib.import_module(f"bench.{case}").race(shape, rounds)
    for row in rows:
        print(_line(row), flush=True)
    return rows


def _race_in_own_process(case: str, shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Run one shape in a new process, so that no earlier shape affects its state."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        numbers = ",".join(map(str, shape))
        command = [sys.executable, "-m", "bench", case, "--shape", numbers]
        command += ["--rounds", str(rounds), "--json", str(file)]
        subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, check=True)
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def _line(row: dict[str, Any]) -> str:
    where = " ".join(f"{name}={size}" for name, size in row["shape"].items())
    known = {"case", "shape", "rival", "mode", "rounds", "agrees"}
    figures = " ".join(f"{name}={value}" for name, value in row.items() if name not in known)
    return f"{row['case']:12} {where:32} {row['rival']:20} {row['mode']:24} {figures}"


if __name__ == "__main__":
    sys.exit(main())
