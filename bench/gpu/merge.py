"""Merge sessions on a GPU into the committed results of this device.

`python -m bench.gpu.merge SESSION.json ...`, the oldest first. A row replaces the one of the same
case, shape, rival and mode, a table of checks or profiles the whole table. Every row has the commit
that it was measured at, and ratios to rivals that its own session timed.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from bench import committed, record

_KEYS = {"rows": ("case", "shape", "rival", "mode"), "parts": ("part",)}
"""Names of the entries that identify a row, by table; of the other tables the newest is kept."""
_NOT_RUN = ("skipped", "left out")
_ABSENT = (None, "not installed")

Result = dict[str, Any]
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Merge the files into the committed one, which is new for a new device."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.merge", description=__doc__)
    parser.add_argument("sessions", nargs="+", type=Path, metavar="SESSION.json")
    files = parser.parse_args(arguments).sessions
    sessions = [json.loads(file.read_text()) for file in files]
    if blind := [
        file.name for file, one in zip(files, sessions, strict=True) if not one["machine"]
    ]:
        parser.error(f"no part of {', '.join(blind)} has seen a GPU")
    file = committed.RESULTS / f"{committed.gpu_name(sessions[0]['machine']['device'])}.json"
    if file.exists():
        sessions.insert(0, json.loads(file.read_text()))
    record.write(file, merged(sessions))
    print(f"wrote {file}")


def merged(results: Iterable[Result]) -> Result:
    """Return the results of one device in one, or raise ValueError if they are of several."""
    return reduce(_merged, map(_with_commits, results))


def _with_commits(result: Result) -> Result:
    """Return the result with a commit in each row, without the parts that were not run."""
    tables = {
        name: [{**row, "commit": row.get("commit", result["commit"])} for row in rows]
        for name, rows in result.items()
        if isinstance(rows, list)
    }
    ran = [row for row in tables["parts"] if not row["status"].startswith(_NOT_RUN)]
    return {**result, **tables, "parts": ran}


def _merged(earlier: Result, later: Result) -> Result:
    machine = _machine(earlier["machine"], later["machine"])
    tables = {
        name: _replaced(earlier[name], later.get(name, []), *key) for name, key in _KEYS.items()
    }
    again = {row["part"] for row in later["parts"]}
    old = [row for row in earlier["failures"] if row["part"] not in again]
    return {
        **earlier,
        **{name: value for name, value in later.items() if value},
        "machine": machine,
        "complete": all(row["status"] == "complete" for row in tables["parts"]),
        **tables,
        "failures": old + later["failures"],
    }


def _replaced(earlier: list[Row], later: list[Row], *names: str) -> list[Row]:
    """Return the later rows after those of the earlier ones that have no successor."""

    def key(row: Row) -> str:
        return json.dumps([row[name] for name in names])

    again = set(map(key, later))
    return [row for row in earlier if key(row) not in again] + later


def _machine(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of both, with all drivers and versions that were seen."""
    for name in ("device", "backends"):
        if earlier[name] != later[name]:
            raise ValueError(
                f"results of one {name} can be merged, got {earlier[name]} and {later[name]}"
            )
    versions = {
        name: _both(earlier["versions"].get(name), later["versions"].get(name))
        for name in {**earlier["versions"], **later["versions"]}
    }
    seen = {name: _both(earlier[name], later[name]) for name in ("driver", "cuda", "python")}
    return {**later, **seen, "versions": versions}


def _both(earlier: str | None, later: str | None) -> str | None:
    """Return the text that is known, or "X and Y" if they differ."""
    if later in _ABSENT or earlier in _ABSENT:
        return earlier if later in _ABSENT else later
    return earlier if str(later) in str(earlier).split(" and ") else f"{earlier} and {later}"


if __name__ == "__main__":
    main()
