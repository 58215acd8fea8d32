"""Labelled tasks from tables of texts and labels: CSV, Parquet or lines of JSON."""

import json
import math
from pathlib import Path
from typing import Any

from saefast.evaluation.probing.tasks.labelled import (
    EXAMPLES,
    FEWEST,
    LabelledTask,
    labelled_task,
    one_against_rest,
)

TEXT, LABEL = "text", "label"


def table_tasks(
    path: str | Path,
    *,
    text: str = TEXT,
    label: str = LABEL,
    examples: int = EXAMPLES,
    seed: int = 0,
) -> list[LabelledTask]:
    """Build the tasks of a table: one task for two classes, else each class against the rest.

    Args:
        path: file .csv, .parquet, .jsonl or .ndjson with a row for each text.
        text: name of the column of texts.
        label: name of the column of labels: numbers, words or true and false. Of two labels, the
            one that sorts last is the positive class.
        examples: maximum number of texts of a task.
        seed: seed of the draw where there are more.

    Returns:
        The tasks in the order of their classes.
    """
    path = Path(path)
    texts, labels = _columns(path, text, label)
    for number, value in enumerate(texts):
        if not isinstance(value, str) or not value.strip():
            got = "nothing" if value is None or value == "" else repr(value)[:40]
            raise ValueError(
                f"{path}: column {text!r} must hold a text in every row, got {got} in row {number}"
            )
    for number, value in enumerate(labels):
        if _is_missing(value):
            raise ValueError(
                f"{path}: column {label!r} must hold a label in every row, got {value!r} in row "
                f"{number}; remove such rows"
            )
    classes: dict[str, list[str]] = {str(value): [] for value in sorted(set(labels), key=_place)}
    for value, its in zip(texts, labels, strict=True):
        classes[str(its)].append(value)
    if len(classes) < 2:
        raise ValueError(
            f"{path}: column {label!r} must hold at least two classes, got {len(classes)}: "
            f"{', '.join(classes)}"
        )
    few = {name: len(set(its)) for name, its in classes.items() if len(set(its)) < FEWEST}
    if few:
        listed = ", ".join(f"{name!r} has {count}" for name, count in few.items())
        raise ValueError(
            f"{path}: every class must have at least {FEWEST} different texts, but {listed}; add "
            f"rows or remove the class"
        )
    if len(classes) > 2:
        return one_against_rest(path.stem, classes, examples=examples, seed=seed)
    every = [(value, last) for last, its in enumerate(classes.values()) for value in its]
    return [
        labelled_task(
            path.stem,
            [value for value, _ in every],
            [bool(last) for _, last in every],
            examples=examples,
            seed=seed,
        )
    ]


def _columns(path: Path, text: str, label: str) -> tuple[list[Any], list[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    table = _read(path)
    for name in (text, label):
        if name not in table:
            raise ValueError(
                f"{path} must have the columns {text!r} and {label!r}, got "
                f"{', '.join(table) or 'none'}"
            )
    if not table[text]:
        raise ValueError(f"{path} must hold rows, got none")
    return table[text], table[label]


def _read(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]]
    try:
        if path.suffix == ".parquet":
            columns = pq.read_table(path).to_pydict()
            return columns
        if path.suffix == ".csv":
            options = pc.ParseOptions(newlines_in_values=True)
            columns = pc.read_csv(path, parse_options=options).to_pydict()
            return columns
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if path.suffix not in (".jsonl", ".ndjson"):
        raise ValueError(
            f"path must be a file .csv, .parquet, .jsonl or .ndjson, got {path.name!r}"
        )
    rows = _json_rows(path)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        # Not splitlines, which also splits at characters that JSON allows in a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}; convert it") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}; correct it") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be an object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _place(label: Any) -> tuple[bool, float, str]:
    """Return a key that orders numbers by size before words by letters."""
    number = isinstance(label, int | float)
    return not number, float(label) if number else 0.0, str(label)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
