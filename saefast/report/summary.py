"""Numbers of a run that figures and findings share, and their format."""

import numpy as np

from saefast.nulls.draws import Spreads
from saefast.report.run_data import RunData
from saefast.run_records import EvaluationRecord


def group_value(data: RunData, group: str, control: str, side: str) -> tuple[float | None, float]:
    """Return a group's explained variance, mean over SAEs, and its mean deviation over draws."""
    rows = [row for row in group_lines(data) if (row.group, row.control) == (group, control)]
    rows = [row for row in rows if row.features]
    if not rows:
        return None, 0.0
    deviation = float(np.mean([getattr(row, f"{side}_std") for row in rows]))
    return float(np.mean([getattr(row, side) for row in rows])), deviation


def group_lines(data: RunData) -> list[Spreads]:
    """Return the records on groups of features from all SAEs' evaluations."""
    seeds = data.evaluation.seeds if data.evaluation else []
    return [line for each in seeds for line in each.groups]


def explained_variance(evaluation: EvaluationRecord) -> float:
    """Return the share of variance that whole SAEs explain, mean over SAEs."""
    return float(np.mean([each.explained_variance for each in evaluation.seeds]))


def pair_shares(
    data: RunData, threshold: float, side: str = "decoder"
) -> dict[tuple[int, int], float]:
    """Return the share of features with a match of at least `threshold`, by pair of SAEs."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in data.overlap:
        wanted = (row["name"], row["side"], row["match"], row["sign"])
        if wanted == ("shared", side, "nearest", "signed") and row["value"] is not None:
            found.setdefault((row["a"], row["b"]), []).append((row["threshold"], row["value"]))
    shares = {}
    for pair, rows in found.items():
        nearest = min((at for at, _ in rows), key=lambda at: abs(at - threshold))
        shares[pair] = float(np.mean([value for at, value in rows if at == nearest]))
    return shares


def percent(share: float) -> str:
    """Format a share as a percentage."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
