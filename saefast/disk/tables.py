"""Tables and settings on disk: Parquet and JSON, each file written whole or not at all."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saefast.disk.atomic import make_folder, write_whole
from saefast.disk.sealed_tables import read_sealed, sealed_table

if TYPE_CHECKING:
    import pyarrow as pa

Table = Mapping[str, Any]
"""Columns of equal length by name: arrays, tensors on the CPU or lists."""


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; numbers that are not finite become null."""
    make_folder(path.parent)
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; None where there is no such file.

    Returns:
        Contents of the file, or None.

    Raises:
        ValueError: the file is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; remove it and run its stage again") from (
            error
        )


def write_table(
    path: Path, columns: "Table | pa.Table", metadata: Mapping[bytes, bytes] | None = None
) -> None:
    """Write columns of equal length as a Parquet file with checksums.

    Args:
        path: the file; missing folders are made.
        columns: the columns by name, or a table of them.
        metadata: metadata of the file's schema; None: pyarrow's own.
    """
    import pyarrow as pa

    make_folder(path.parent)
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    write_whole(path, sealed_table(table))


def table_of(rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """Build a table of rows; its columns are those of all rows, missing cells are null."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a Parquet file; its columns are those of all rows, missing cells are null."""
    write_table(path, table_of(rows))


def read_table(path: Path) -> Any:
    """Read a Parquet file as a `pyarrow.Table`; None where there is no such file.

    Returns:
        `pyarrow.Table`, or None.

    Raises:
        ValueError: the file is truncated, damaged or not Parquet.
    """
    import pyarrow as pa

    if not path.is_file():
        return None
    try:
        return read_sealed(path)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or not Parquet: {error}; remove it and run its stage again"
        ) from error


def add_columns(path: Path, columns: Table) -> None:
    """Add columns to a Parquet file, in place of columns of the same names."""
    table = read_table(path)
    kept = {} if table is None else {name: table[name] for name in table.column_names}
    write_table(path, {**kept, **columns})
