"""The rows of a study, for people and for dataframes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from saefast.atomic import write_whole

Cell = str | int | float | bool | None


def as_text(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Aligned columns under their names; numbers with three digits after the point."""
    if not rows:
        return "no rows"
    lines = [list(rows[0]), *([_shown(row[name]) for name in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_parquet(rows: Sequence[Mapping[str, Cell]], path: Path) -> Path:
    """The same rows as a table on disk."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) for row in rows])
    content = io.BytesIO()
    pq.write_table(table, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
    return path


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
