"""studies: results and times of the studies with known answers.

`python -m bench studies --json FILE` runs all, each in a separate process; `--parts` selects some.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import record
from bench.measure import peak_memory
from saefast.studies import run_digits, run_lowrank, run_recovery, run_validity
from saefast.studies.validity import ValidityResult

PARTS: dict[str, Callable[[], Any]] = {
    "lowrank": lambda: run_lowrank(),
    "recovery": lambda: run_recovery(),
    "digits": lambda: run_digits(),
    "validity": lambda: run_validity(),
}
"""Studies, with their default arguments."""


def main(arguments: list[str]) -> int:
    """Run all studies, or those selected; the others keep their rows in the file."""
    parser = argparse.ArgumentParser(prog="python -m bench studies", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write machines, commits and rows to")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    studies: dict[str, Any] = {}
    if chosen.json and chosen.json.exists():
        studies = json.loads(chosen.json.read_text())["studies"]
    for name in chosen.parts:
        studies[name] = _study(name) if chosen.in_process else _in_own_process(name)
        if chosen.json:
            record.write(chosen.json, {"studies": studies})
    return 0


def _study(name: str) -> dict[str, Any]:
    start, processor = time.perf_counter(), time.process_time()
    found = PARTS[name]()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    print(found.as_text())
    study = {
        "machine": record.machine(),
        "commit": record.commit(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processor, 1),
        "peak_gb": round(peak_memory(), 2),
        "rows": _rows(found),
    }
    if isinstance(found, ValidityResult):
        study["ranks"] = _rows(found.ranks)
    return study


def _rows(found: Any) -> list[dict[str, Any]]:
    """Return rows as dicts, with None for NaN, which JSON does not have."""
    return [
        {name: None if value != value else value for name, value in asdict(row).items()}
        for row in found.rows
    ]


def _in_own_process(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.json"
        command = [sys.executable, "-m", "bench", "studies", "--in-process"]
        command += ["--parts", name, "--json", str(file)]
        subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, check=True)
        study: dict[str, Any] = json.loads(file.read_text())["studies"][name]
    return study
