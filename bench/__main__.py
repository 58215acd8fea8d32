"""`python -m bench CASE --json FILE`."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from bench import measure

CASES = ("encode", "decode", "train_step", "memory")


def main() -> int:
    """Time one case, print its table, write its rows."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=main.__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    arguments = parser.parse_args()
    rows = []
    for row in importlib.import_module(f"bench.{arguments.case}").rows(arguments.rounds):
        rows.append(row)
        print(_line(row), flush=True)
    if arguments.json:
        result = {"machine": measure.machine(), "commit": measure.commit(), "rows": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = arguments.json.with_suffix(".part")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(arguments.json)
        print(f"wrote {arguments.json}")
    return 0


def _line(row: dict[str, object]) -> str:
    shape = row["shape"]
    assert isinstance(shape, dict)
    where = " ".join(f"{name}={size}" for name, size in shape.items())
    known = {"case", "shape", "rival", "mode", "rounds", "agrees"}
    figures = " ".join(f"{name}={value}" for name, value in row.items() if name not in known)
    return f"{row['case']:12} {where:32} {row['rival']:20} {row['mode']:24} {figures}"


if __name__ == "__main__":
    sys.exit(main())
