"""Contents of the open page of a report, and the features of its run."""

from pathlib import Path
from typing import Any

from saefast.disk.tables import read_table
from saefast.run_folder import FEATURES


def alive(report: Path) -> list[dict]:
    """Return the features of a run that are shown."""
    return [row for row in read_table(report.parent / FEATURES).to_pylist() if row["alive"]]


def label(row: dict) -> str:
    return f"{row['seed']}:{row['feature']}"


def search(page: Any, words: str) -> None:
    """Fill in the field, and wait until contexts have been searched as well."""
    page.fill("#search", words)
    page.wait_for_selector("#features table:not([aria-busy])")


def shown(page: Any, column: str) -> list[str]:
    """Return the cells of a column."""
    return page.locator(f"tbody tr:not(.detail) td.column-{column}").all_inner_texts()


def detail(page: Any) -> str:
    """Return the text of an open row, once it is unpacked."""
    page.wait_for_selector("tr.detail .note")
    return page.inner_text("tr.detail")


def tip(page: Any) -> str:
    return page.inner_text(".tip") if page.is_visible(".tip") else ""
