"""Committed results, and tables of Markdown made from them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def load(case: str) -> dict[str, Any]:
    """Return the committed results of a case."""
    result: dict[str, Any] = json.loads((RESULTS / f"{case}.json").read_text())
    return result


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown, a line for each sequence of cells."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
