"""Rows of campaigns, made of the counts of their tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import record
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
