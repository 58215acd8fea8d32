"""Tables of docs/results/evaluations, from the rows of `bench evaluations`."""

from collections.abc import Iterable
from typing import Any

from bench.committed import load, markdown
from bench.evaluations import KEPT

_PRIMARY = {name: measures[0] for name, measures in KEPT.items()}
_CONDITIONS = {
    "trained": "**trained**, rows of norm one",
    "free": "trained, free norms",
    "l2": "trained, free norms, L2 penalty",
    "untrained": "untrained directions",
    "residual": "coordinates of the activation",
    "pca": "principal axes",
    "diffmean": "differences of class means",
    "random latents": "random latents",
    "text": "classifier of the text",
    "full": "probe on the whole activation",
}
_GROUPS = {
    "stable": "stable latents",
    "stable:mass": "random latents of the same mass",
    "unstable": "unstable latents",
    "unstable:mass": "random latents of the same mass",
}
_SECONDS_PER_MINUTE = 60


def by_condition() -> str:
    """Return the primary scores of the full budget, with a row for each condition."""
    rows = [
        [title, *(_cell(_score(name, condition)) for name in KEPT)]
        for condition, title in _CONDITIONS.items()
    ]
    trained = [_score(name) for name in KEPT]
    limits = [
        ["floor", *(_number(one["floor"]) for one in trained)],
        ["ceiling", *(_number(one["ceiling"]) for one in trained)],
    ]
    return _table([*rows, *limits])


def by_group() -> str:
    """Return the primary scores of the full budget, with a row for each stability group."""
    rows = [
        [title, *(_cell(_score(name, group=group)) for name in KEPT)]
        for group, title in _GROUPS.items()
    ]
    return _table(rows)


def differences() -> str:
    """Return differences of SAEs with unit norms to the others, with a row for each condition."""
    rows = [
        [
            f"trained, minus {_CONDITIONS[condition]}",
            *(_cell(_score(name, f"trained - {condition}")) for name in KEPT),
        ]
        for condition in ("free", "l2", "untrained")
    ]
    return _table(rows)


def surface() -> str:
    """Return the sentence on surface form: shares by stability, and the difference between them."""
    shares = {
        score["group"]: score
        for score in load("evaluations")["budgets"]["full"]["scores"]
        if (score["measure"], score["condition"]) == ("explained by surface", "trained")
    }
    return (
        f"Share of latents that surface form explains: unstable {_cell(shares['unstable'])}, "
        f"stable {_cell(shares['stable'])}; difference at equal firing rate "
        f"{_cell(shares['unstable - stable at equal firing rate'])}."
    )


def prediction() -> str:
    """Return the finding on properties that predict the gain of steering, of the full budget."""
    findings = load("evaluations")["budgets"]["full"]["findings"]
    (found,) = (each["text"] for each in findings if each["figure"] == "explanations-steering")
    return str(found)


def caption() -> str:
    """Return the caption: the columns, time, memory and commit."""
    result = load("evaluations")
    machine, budgets = result["machine"], result["budgets"]
    times = "; ".join(
        f"{name}: {found['seconds'] / _SECONDS_PER_MINUTE:.1f} minutes, {found['peak_gb']:.1f} GB ("
        + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["stages"].items())
        + f"; at commit {found['commit']})"
        for name, found in budgets.items()
    )
    return (
        "Means with 95 % intervals; empty where a condition has no such score. All evaluations of "
        f"the four SAEs and all conditions took, by budget, {times}; {machine['cpu']}, "
        f"{machine['threads']} threads."
    )


def _table(rows: Iterable[list[str]]) -> str:
    heads = [f"{name}: {measure}" for name, measure in _PRIMARY.items()]
    return markdown([["", *heads], ["---"] + ["---:"] * len(heads), *rows])


def _score(name: str, condition: str = "trained", group: str = "") -> dict[str, Any]:
    """Return the score of an evaluation's primary measure, or nothing."""
    wanted = {"measure": _PRIMARY[name], "condition": condition, "group": group}
    for score in load("evaluations")["budgets"]["full"]["scores"]:
        if score["evaluation"] == name and wanted.items() <= score.items():
            found: dict[str, Any] = score
            return found
    return {}


def _cell(score: dict[str, Any]) -> str:
    """Format a value with its interval."""
    if not score or score["value"] is None:
        return ""
    if score["low"] is None:
        return _number(score["value"])
    return f"{_number(score['value'])} ({_number(score['low'])} to {_number(score['high'])})"


def _number(value: float | None) -> str:
    """Format a value with two decimals; -0.001 becomes 0.00."""
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}"
