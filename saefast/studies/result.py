"""Result of a study: rows as a table, as text and on disk."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from saefast.disk.tables import table_of, write_table

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class StudyResult(Generic[Row]):
    """Rows of a study, each a dataclass of its measures."""

    rows: tuple[Row, ...]
    written: tuple[Path, ...] = ()
    """files with these rows"""

    @classmethod
    def of(cls, rows: Iterable[Row], out: str | Path | None, name: str) -> "StudyResult[Row]":
        """Build the result and, unless `out` is None, write it to `out/name`."""
        result = cls(rows=tuple(rows))
        if out is None:
            return result
        file = Path(out) / name
        write_table(file, result.to_table())
        return cls(rows=result.rows, written=(file,))

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each row of the study."""
        return table_of(self._cells())

    def as_text(self) -> str:
        """Format rows as aligned columns under their names, with three decimals."""
        rows = self._cells()
        if not rows:
            return "no rows"
        lines = [list(rows[0]), *([_shown(cell) for cell in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _cells(self) -> list[dict[str, Any]]:
        rows: Any = self.rows
        return [asdict(row) for row in rows]


def _shown(cell: str | int | float | None) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
