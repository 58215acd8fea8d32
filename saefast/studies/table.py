"""Rows of a study as text."""

from collections.abc import Mapping, Sequence

Cell = str | int | float | bool | None


def as_text(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Format rows as aligned columns under their names, with three digits after the point."""
    if not rows:
        return "no rows"
    lines = [list(rows[0]), *([_shown(row[name]) for name in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
