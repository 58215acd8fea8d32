"""Rows of the study along one setting, with the others as in the base cell."""

from collections.abc import Sequence
from typing import Any

from bench.study.rows import Row

BASE: Row = {
    "model": "smollm2",
    "site": "resid.12",
    "text": "varied",
    "distinct": 2_000_000,
    "tokens": 2_000_000,
    "latents": 2048,
    "k": 32,
    "variant": "topk",
    "unit_norm": True,
    "penalty": "none",
    "seeds": 5,
    "rate": "default",
}
"""Settings of the base cell by which rows are compared."""

AXES: dict[str, tuple[str, ...]] = {
    "tokens": ("tokens",),
    "latents": ("latents",),
    "k": ("k",),
    "site": ("site",),
    "variant": ("variant",),
    "penalty": ("unit_norm", "penalty"),
    "text": ("text", "distinct"),
    "model": ("model", "site", "tokens"),
    "rate": ("tokens", "rate"),
}
"""Settings that differ between the rows of an axis, by the name of the axis."""

_VARIANTS = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")
_PENALTIES = {"fro_squared": "L2", "mean_abs": "L1"}


def along(rows: Sequence[Row], axis: str) -> list[Row]:
    """Return the rows of an axis in ascending order of its setting.

    Args:
        rows: rows of the study.
        axis: a name in `AXES`.
    """
    varied = AXES[axis]
    fixed = {name: value for name, value in BASE.items() if name not in varied}
    mine = [row for row in rows if all(row.get(name) == value for name, value in fixed.items())]
    if axis == "model":  # of the first model the base cell is enough
        mine = [row for row in mine if row["model"] != BASE["model"] or _is_base(row)]
    if axis == "rate":
        lengths = {row["tokens"] for row in mine if row["rate"] != BASE["rate"]}
        mine = [row for row in mine if row["tokens"] in lengths]
    return sorted(mine, key=lambda row: [_order(row[name]) for name in varied])


def _is_base(row: Row) -> bool:
    return all(row.get(name) == value for name, value in BASE.items())


def label(row: Row, axis: str) -> str:
    """Return the words for a row of an axis."""
    if axis == "tokens":
        return f"{row['tokens'] / 1e6:g} M rows"
    if axis == "latents":
        return f"{row['latents']:,} latents"
    if axis == "k":
        return f"k = {row['k']}"
    if axis == "site":
        return f"layer {row['site'].rpartition('.')[2]}"
    if axis == "variant":
        return str(row["variant"])
    if axis == "penalty":
        norms = "unit norm" if row["unit_norm"] else "free norm"
        penalty = _PENALTIES.get(row["penalty"], row["penalty"])
        return norms if penalty == "none" else f"{norms}, {penalty}"
    if axis == "model":
        return f"{row['model']}, {row['site']}, {row['tokens'] / 1e6:g} M rows"
    if axis == "rate":
        return f"{row['lr']:g}, {row['tokens'] / 1e6:g} M rows"
    return f"{row['text']} text, {row['distinct'] / 1e6:g} M distinct rows"


def _order(value: Any) -> tuple[int, float, str]:
    """Return a key by which values of a setting are sorted: numbers, layers and names."""
    if isinstance(value, bool):
        return (0, float(not value), "")
    if isinstance(value, int | float):
        return (0, float(value), "")
    if value in _VARIANTS:
        return (0, float(_VARIANTS.index(value)), "")
    number = str(value).rpartition(".")[2]
    return (0, float(number), "") if number.isdigit() else (1, 0.0, str(value))
