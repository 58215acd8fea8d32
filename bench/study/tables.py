"""Tables of docs/results/study, from the rows of `bench study`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.committed import load, markdown
from bench.study.axes import AXES, BASE, along, label
from bench.study.pieces import PIECES
from bench.study.rows import Row
from saefast.evaluation.intervals import student_interval

Value = Sequence[float | None]
Columns = Sequence[tuple[str, str, Callable[[Value], str]]]

_SECONDS_PER_HOUR = 3600
_TITLES = {
    "tokens": "rows of training",
    "latents": "latents",
    "k": "active latents",
    "site": "layer",
    "variant": "variant",
    "penalty": "norms and penalties",
    "text": "text",
    "model": "model",
    "rate": "learning rate",
}


def recurrence() -> str:
    """Return the table of features that recur between seeds, with a row for each cell."""
    columns: Columns = [
        ("EV", "explained_variance", _two),
        ("L0", "l0", _whole),
        ("stable, %", "stable_share", _percent),
        ("unstable, %", "unstable_share", _percent),
        ("shared pairs, %", "shared", _percent),
        ("shared, encoder as well, %", "shared_both", _percent),
        ("PW-MCC", "pw_mcc", _two),
        ("by chance", "pw_mcc_null", _two),
    ]
    return _cells(columns)


def worth() -> str:
    """Return the table of stable and unstable features' worth, with a row for each cell."""
    columns: Columns = [
        ("EV, stable alone", "stable_keep", _two),
        ("less random of equal mass", "stable_lead", _signed),
        ("EV, unstable alone", "unstable_keep", _two),
        ("less random of equal mass", "unstable_lead", _signed),
        ("effect of an unstable feature", "unstable_effect", _two),
        ("firing rate, unstable / stable", "unstable_rate", _two),
        ("AUROC of a token, unstable less stable", "unstable_auroc_lead", _signed),
    ]
    return _cells(columns)


def subspaces() -> str:
    """Return overlaps of subspaces beyond their nulls, with a row for each cell."""
    columns: Columns = [
        ("overlap, unstable", "unstable_overlap", _two),
        ("less random subspaces", "unstable_beyond_haar", _signed),
        ("less covariance", "unstable_beyond_covariance", _signed),
        ("less random features", "unstable_beyond_subset", _signed),
        ("contributions of unstable, R2", "unstable_r2", _two),
        ("less random of equal mass", "unstable_r2_beyond_mass", _signed),
    ]
    return _cells(columns)


def language_model() -> str:
    """Return cross entropies of the next token, with a row for each length of training."""
    columns: Columns = [
        ("model", "ce_clean", _two),
        ("whole SAE", "ce_full", _two),
        ("stable alone", "ce_stable", _two),
        ("random of equal mass", "ce_stable_mass", _two),
        ("unstable alone", "ce_unstable", _two),
        ("random of equal mass", "ce_unstable_mass", _two),
        ("mean activation", "ce_mean", _two),
    ]
    return _cells(columns, axes=("tokens",), needed="ce_full")


def pooling() -> str:
    """Return pools and their controls at equal numbers of latents, by length of training."""
    heads = ["SAEs of a pool", "rows of each", "method", "rows of all training"]
    lines = [[*heads, "EV", "matched", "PW-MCC"], ["---:", "---:", "---", *["---:"] * 4]]
    for row in sorted(_rows(), key=lambda row: int(row["tokens"])):
        for each in row["pooling"] or []:
            error = 1.96 * each["match_share_error"]
            lines.append(
                [
                    str(row["seeds"] // 2),
                    f"{row['tokens']:,}",
                    each["method"],
                    f"{each['tokens']:,}",
                    f"{each['explained_variance']:.3f}",
                    f"{each['match_share']:.3f} ± {error:.3f}",
                    f"{each['pw_mcc']:.3f}",
                ]
            )
    return markdown(lines)


def membership() -> str:
    """Return shares of features by the number of other SAEs that contain them."""
    rows = [row for row in along(_rows(), "tokens") if row["tokens"] >= BASE["tokens"]]
    rows += [row for row in _rows() if row["piece"] == "membership"]
    most = max(row["seeds"] for row in rows)
    lines = [["SAEs", "rows of training", *map(str, range(most))], ["---:"] * (2 + most)]
    for row in rows:
        counts = np.array(row["membership"], dtype=float)  # [SAEs, numbers of others]
        shares = counts / counts.sum(1, keepdims=True)
        cells = [_percent(student_interval(list(each))) for each in shares.T]
        missing = [""] * (most - row["seeds"])
        lines.append([str(row["seeds"]), label(row, "tokens"), *cells, *missing])
    return markdown(lines)


def cost() -> str:
    """Return the hours of each piece, measured for finished cells and planned for others."""
    lines = [["piece", "cells finished", "of", "hours measured", "hours planned"]]
    lines.append(["---", "---:", "---:", "---:", "---:"])
    rows = _rows()
    for piece in PIECES:
        mine = [row for row in rows if row["piece"] == piece.name]
        seconds = sum(sum(row["seconds"].values()) for row in mine)
        hours = f"{seconds / _SECONDS_PER_HOUR:.2f}" if mine else ""
        complete = str(sum(row["complete"] for row in mine))
        lines.append([piece.name, complete, str(piece.cells), hours, f"{piece.hours:g}"])
    return markdown(lines)


def caption() -> str:
    """Return where and when the rows were measured."""
    results = load("study")
    sources = results["texts"]["sources"]
    characters = sum(each["characters"] for each in sources.values())
    named = ", ".join(f"{name} {each['characters'] / 1e6:.0f} M" for name, each in sources.items())
    machines = dict.fromkeys(f"{row['cpu']}, {row['cores']} cores" for row in results["rows"])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in results["rows"] if row["commit"]))
    return (
        f"{'; '.join(machines)}; shared with other work; at commit {commits}. "
        f"Texts: {characters / 1e6:.0f} M characters ({named})."
    )


def _rows() -> list[Row]:
    rows: list[Row] = load("study")["rows"]
    return rows


def _cells(
    columns: Columns,
    axes: Sequence[str] = tuple(AXES),
    needed: str = "stable_share",
) -> str:
    """Return a table with a row for each cell of the axes that have at least two.

    Args:
        columns: head, name of the measure, and format of each column.
        axes: axes in the order of the table.
        needed: measure without which a cell has no row.
    """
    lines = [["", *(head for head, _, _ in columns)], ["---", *["---:"] * len(columns)]]
    for axis in axes:
        rows = [row for row in along(_rows(), axis) if needed in row["measures"]]
        if len(rows) < 2 and len(axes) > 1:
            continue
        lines.append([f"**{_TITLES[axis]}**", *[""] * len(columns)])
        for row in rows:
            cells = [_in_words(row["measures"].get(name), form) for _, name, form in columns]
            lines.append([label(row, axis), *cells])
    return markdown(lines)


def _in_words(value: Value | None, form: Callable[[Value], str]) -> str:
    return "" if value is None else form(value)


def _formatted(value: Value, form: Callable[[Any], str]) -> str:
    middle, low, high = value
    if low is None or high is None:
        return form(middle)
    return f"{form(middle)} ({form(low)} to {form(high)})"


# Adding zero turns a rounded -0.0 into 0.0.


def _two(value: Value) -> str:
    return _formatted(value, lambda one: f"{round(one, 2) + 0.0:.2f}")


def _signed(value: Value) -> str:
    return _formatted(value, lambda one: f"{one:+.3f}")


def _percent(value: Value) -> str:
    return _formatted(value, lambda one: f"{round(100 * one, 1) + 0.0:.1f}")


def _whole(value: Value) -> str:
    return f"{value[0]:.0f}"
