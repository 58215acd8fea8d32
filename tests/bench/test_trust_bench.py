"""Rows of campaigns, made of the counts of their tests."""

from typing import Any

from bench.trust import summed


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
