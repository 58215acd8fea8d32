"""Rows of campaigns, made of the counts of their tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.sanitize import passed_tests
from bench.trust import replace_rows, summed


def counted(campaign: str, cases: int, *, failed: bool = False) -> dict[str, Any]:
    outcomes = {"clear error": cases - 1, "read": 1}
    return {
        "campaign": campaign,
        "failed": failed,
        "cases": cases,
        "outcomes": outcomes,
        "seconds": 1.5,
    }


def test_tests_of_a_campaign_are_added_and_failed_campaigns_have_no_row() -> None:
    tests = [counted("a", 3), counted("b", 5), counted("b", 7, failed=True), counted("a", 4)]
    outcomes = {"clear error": 5, "read": 2}
    assert summed(tests, "abc") == [
        {"campaign": "a", "cases": 7, "outcomes": outcomes, "seconds": 3.0, "commit": "abc"}
    ]


@pytest.mark.parametrize(
    ("summary", "count"),
    [
        ("10 passed in 8.44s", 10),
        ("521 passed, 3 deselected in 469.35s (0:07:49)", 521),
        ("== 431 passed, 91 skipped, 3 deselected, 2 warnings in 198.14s (0:03:18) ==", 431),
    ],
)
def test_passed_tests_are_counted(summary: str, count: int) -> None:
    assert passed_tests(f"..a warning: 7 passed here\n....\n{summary}\n") == count
    with pytest.raises(ValueError, match="no summary"):
        passed_tests("....\nkilled\n")


def test_rows_are_replaced_and_name_their_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trust.json"
    for cpu, names in (("old", "ca"), ("new", "ab")):
        monkeypatch.setattr(record, "machine", lambda cpu=cpu: {"cpu": cpu, "cores": 2})
        replace_rows(file, [{"campaign": name} for name in names])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["campaign"], row["cpu"]) for row in rows] == [
        ("a", "new"), ("b", "new"), ("c", "old")
    ]  # fmt: skip
