"""trust: campaigns of tests/trust with many cases, and the table of how they ended."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record

_CHECKOUT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str]) -> int:
    """Run campaigns and write their rows; rows of campaigns that were not run stay as they are."""
    parser = argparse.ArgumentParser(prog="python -m bench trust", description=main.__doc__)
    parser.add_argument("--json", type=Path, help="file whose rows are replaced or added")
    parser.add_argument("tests", nargs="*", default=["tests/trust"], help="default: tests/trust")
    chosen = parser.parse_args(arguments)
    commit = record.commit()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.touch()
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "campaign", *chosen.tests],
            cwd=_CHECKOUT,
            env={**os.environ, "SAEFAST_TRUST": str(file)},
        ).returncode
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = summed(rows, commit)
    for row in rows:
        print(row)
    if chosen.json:
        replace_rows(chosen.json, rows)
    return code


def summed(tests: Sequence[dict[str, Any]], commit: str) -> list[dict[str, Any]]:
    """Return a row for each campaign without a failed test, the sum of the rows of its tests."""
    found: dict[str, dict[str, Any]] = {}
    failed = {test["campaign"] for test in tests if test["failed"]}
    for test in tests:
        campaign = test["campaign"]
        if campaign in failed:
            continue
        begin = {"campaign": campaign, "cases": 0, "outcomes": {}, "seconds": 0, "commit": commit}
        row = found.setdefault(campaign, begin)
        for name in ("cases", "seconds"):
            row[name] = round(row[name] + test[name], 1)
        for name, count in test["outcomes"].items():
            row["outcomes"][name] = row["outcomes"].get(name, 0) + count
    return list(found.values())


def replace_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Replace or add the rows of these campaigns in a file, with the processor of this machine."""
    machine = record.machine()
    here = {"cpu": machine["cpu"], "cores": machine["cores"]}
    earlier = json.loads(file.read_text())["rows"] if file.exists() else []
    found = {row["campaign"]: row for row in (*earlier, *(row | here for row in rows))}
    record.write(file, {"rows": [found[name] for name in sorted(found)]})
