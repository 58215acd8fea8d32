"""Numbers of a run that figures and findings share, and their format."""

from typing import NamedTuple

import numpy as np

from saefast.nulls.draws import Spreads
from saefast.report.run_data import RunData
from saefast.run_records import EvaluationRecord

NULLS = {
    "haar": ("random", "s2"),
    "covariance": ("covariance", "s3"),
    "subset": ("any features", "s4"),
    "initial": ("untrained", "s5"),
}
"""Words and colours of the nulls of overlaps, each harder to exceed than the one before."""


class Spread(NamedTuple):
    """Mean and standard deviation over the draws of a control; no deviation for a group itself."""

    mean: float
    deviation: float

    @property
    def low(self) -> float:
        """Lower end of the range that holds about 95 % of the draws."""
        return self.mean - 2 * self.deviation

    @property
    def high(self) -> float:
        """Upper end of that range."""
        return self.mean + 2 * self.deviation


def group_by_seed(data: RunData, group: str, control: str, side: str) -> dict[int, Spread]:
    """Return the explained variance of a group or control by SAE, where the group has features."""
    return {
        each.seed: Spread(getattr(row, side), getattr(row, f"{side}_std"))
        for each in (data.evaluation.seeds if data.evaluation else [])
        for row in each.groups
        if (row.group, row.control) == (group, control) and row.features
    }


def group_value(data: RunData, group: str, control: str, side: str) -> tuple[float | None, float]:
    """Return a group's explained variance, mean over SAEs, and its mean deviation over draws."""
    rows = list(group_by_seed(data, group, control, side).values())
    if not rows:
        return None, 0.0
    deviation = float(np.mean([row.deviation for row in rows]))
    return float(np.mean([row.mean for row in rows])), deviation


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
        wanted = (row["name"], row["side"], row["match"])
        if wanted == ("shared", side, "nearest") and row["value"] is not None:
            found.setdefault((row["a"], row["b"]), []).append((row["threshold"], row["value"]))
    shares = {}
    for pair, rows in found.items():
        nearest = min((at for at, _ in rows), key=lambda at: abs(at - threshold))
        shares[pair] = float(np.mean([value for at, value in rows if at == nearest]))
    return shares


def small(value: float) -> str:
    """Format a number from 0 to 1 with two digits, or as a bound if it is tiny."""
    return "under 0.001" if 0 < value < 0.001 else f"{value:.2g}"


def percent(share: float) -> str:
    """Format a share as a percentage."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
