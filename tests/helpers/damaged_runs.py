"""Folders of runs and sweeps with a damaged file, read by the commands that read them.

    python -m helpers.damaged_runs FOLDER CASES

Half of the files are mutated byte by byte. In the others a value of JSON, or a column of a table,
is replaced, left out or repeated, and checksums are written again. Limits and outcomes are those of
`helpers.hostile_files`.
"""

import atexit
import functools
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers.evaluated_run import with_evaluations
from helpers.hostile_files import Target, mutated, run
from helpers.small_sweep import base_settings, small_sweep
from helpers.tiny_run import with_language_model

from saefast.damage import verify
from saefast.disk.tables import read_table, write_table
from saefast.pipeline import run_pipeline, settings_of
from saefast.pipeline.settings_file import settings_from
from saefast.report import write_report
from saefast.sweep import SweepFolder, write_table_and_report

_BEFORE_REPORT = ("pool", "subspace", "evaluate")
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**40,
    10**30,
    1e300,
    "x",
    "../../x",
    [],
    {},
    [[1]],
    {"a": 1},
]


@functools.cache
def _made(*stages: str) -> Path:
    """Return the folder of a run of some stages, made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="damaged-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = settings_from(base_settings())
    run_pipeline(settings, folder / "run", until=stages, progress=False)
    return folder / "run"


def small_run(folder: Path) -> Path:
    """Copy a run of all stages but the report to a folder."""
    shutil.copytree(_made(*_BEFORE_REPORT), folder)
    return folder


def _reported(folder: Path) -> None:
    """Copy the run, with the files that a language model and evaluations add to it."""
    with_evaluations(with_language_model(_made(*_BEFORE_REPORT), folder))
    write_report(folder)


def swept(folder: Path) -> None:
    """Write the folder of a sweep of one cell."""
    sweep = small_sweep(folder / "file", 'base = "base.toml"\n[grid]\n"train.k" = [3]\n')
    SweepFolder(folder).write(sweep, "evaluate")
    (cell,) = sweep.cells
    small_run(folder / "cells" / cell.name)
    shutil.rmtree(folder / "file")


def _continued(stages: tuple[str, ...], until: str) -> Target:
    """Return a run of some stages that is continued from the folder alone."""

    def read(folder: Path) -> None:
        run_pipeline(settings_of(folder), folder, until=until, resume=True, progress=False)

    return Target(lambda folder: shutil.copytree(_made(*stages), folder), read)


TARGETS = {
    "saefast report": Target(_reported, write_report),
    "saefast verify": Target(_reported, verify),
    "saefast run": _continued(_BEFORE_REPORT, "report"),
    "saefast match": _continued(("train",), "match"),
    "saefast stability": _continued(("match",), "stability"),
    "saefast evaluate": _continued(("stability",), "evaluate"),
    "saefast report of a sweep": Target(
        swept, lambda folder: write_table_and_report(SweepFolder(folder))
    ),
}


def changed(file: Path, draw: random.Random) -> bytes:
    """Return the content of a file after a random change."""
    content = file.read_bytes()
    if file.name == "settings.json" or draw.random() < 0.5:  # settings may ask for any work
        return mutated(content, draw)
    if file.suffix == ".json":
        return _with_other_value(content, draw)
    if file.suffix == ".jsonl":
        lines = content.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = _with_other_value(lines[place], draw)
        return b"\n".join(lines)
    if file.suffix == ".parquet":
        _change_column(file, draw)
        return file.read_bytes()
    return mutated(content, draw)


def _with_other_value(content: bytes, draw: random.Random) -> bytes:
    """Return JSON in which one value, at any depth, is replaced, left out or repeated."""
    whole = {"": json.loads(content)}
    place: Any = whole
    key: Any = ""
    while isinstance(place[key], dict | list) and place[key] and (key == "" or draw.random() < 0.8):
        place = place[key]
        key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
    kind = draw.randrange(4)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, list):
        place.extend([place[key]] * 3)
    else:
        place[key] = draw.choice(_VALUES)
    return json.dumps(whole.get("")).encode()


def _change_column(file: Path, draw: random.Random) -> None:
    """Replace, leave out or cut a column of a table, and write the table with its checksums."""
    table = read_table(file)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    name = draw.choice(list(columns))
    kind = draw.randrange(5)
    if kind == 0:
        del columns[name]
    elif kind == 1:
        columns = {each: values[: len(values) // 2] for each, values in columns.items()}
    elif kind == 2:
        columns[name] = [None] * len(columns[name])
    elif kind == 3:
        columns[name] = ["x"] * len(columns[name])
    else:
        value = draw.choice([-1, 10**9, 2**62, float("nan"), 1e300])
        columns[name] = [value] * len(columns[name])
    write_table(file, columns)


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), TARGETS, changed)))
