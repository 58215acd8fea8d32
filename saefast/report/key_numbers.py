"""Numbers that summarise a run, each with its interval and its value by chance."""

from collections.abc import Callable, Iterator
from math import comb, isnan
from typing import NamedTuple

import numpy as np

from saefast.evaluation.intervals import Interval, student_interval
from saefast.report.run_data import RunData, TableRows
from saefast.report.summary import explained_variance, group_by_seed, percent
from saefast.run_records import EffectRecord, as_active

_SHOWN = 4
_NORMAL = 1.96
_OVER_SAES = "95 % interval over SAEs"
_OVER_PAIRS = "range over pairs of SAEs"


class KeyNumber(NamedTuple):
    """Number of a run beside the same number under a null."""

    name: str
    value: Interval
    interval_of: str
    """meaning of the ends of `value`"""
    null: Interval
    """value under the null, with the range of its draws; NaN ends if it is an expectation"""
    null_name: str
    scope: str
    """definition of the number in a few words"""
    figure: str
    """name of the figure that shows it"""
    share: bool = False
    """whether it is a share of features, shown in percent"""

    def shown(self, value: float) -> str:
        """Format a value of this number."""
        return percent(value) if self.share else f"{value:z.2f}"

    def in_words(self) -> tuple[str, str]:
        """Return sentences without a period: the interval, and the null with its range."""
        low, high = self.value.low, self.value.high
        ends = "no interval" if isnan(low) else f"{self.interval_of} {self._ends(low, high)}"
        null = f"{self.null_name}: {self.shown(self.null.value)}"
        if not isnan(self.null.low):
            null += f" ({self._ends(self.null.low, self.null.high)})"
        return ends, null

    def _ends(self, low: float, high: float) -> str:
        return f"{self.shown(low)} to {self.shown(high)}"


def key_numbers(data: RunData) -> list[KeyNumber]:
    """Return up to four numbers that the files of a run allow, the most important first."""
    found = (number for find in _FIND for number in find(data))
    return [number for number, _ in zip(found, range(_SHOWN), strict=False)]


def _stable_share(data: RunData) -> Iterator[KeyNumber]:
    record = data.stability
    shares = [each.stable / each.alive for each in record.seeds if each.alive] if record else []
    if record is None or not shares:
        return
    others = len(record.seeds) - 1
    least = next(hits for hits in range(others + 1) if hits / others >= record.stable_cut - 1e-9)
    p = float(np.mean(record.chance))
    chance = sum(comb(others, k) * p**k * (1 - p) ** (others - k) for k in range(least, others + 1))
    interval = student_interval(shares)
    yield KeyNumber(
        "Stable features",
        Interval(interval.value, max(interval.low, 0.0), min(interval.high, 1.0)),
        _OVER_SAES,
        _exactly(chance),
        "random directions",
        "share of the features that recur in at least "
        f"{percent(record.stable_cut)} of the other SAEs",
        "stability-histogram",
        share=True,
    )


def _explained_by_stable(data: RunData) -> Iterator[KeyNumber]:
    own = group_by_seed(data, "stable", "", "keep")
    random = list(group_by_seed(data, "stable", "mass", "keep").values())
    if not data.evaluation or not own or not random:
        return
    null, deviation = (float(np.mean(column)) for column in zip(*random, strict=True))
    yield KeyNumber(
        "Explained by stable features",
        student_interval([each.mean for each in own.values()]),
        _OVER_SAES,
        Interval(null, null - 2 * deviation, null + 2 * deviation),
        "random features of equal activation mass",
        "explained variance with the stable features alone; the whole SAE explains "
        f"{explained_variance(data.evaluation):.2f}",
        "keep-drop",
    )


def _overlap_of_unstable(data: RunData) -> Iterator[KeyNumber]:
    tests = [
        row
        for row in data.subspaces["nulls"]
        if (row["group"], row["statistic"], row["null"]) == ("unstable", "overlap", "covariance")
    ]
    if not tests:
        return
    mean = float(np.mean([row["mean"] for row in tests]))
    drawn = [row for row in tests if row["low"] is not None and row["high"] is not None]
    yield KeyNumber(
        "Overlap of unstable subspaces",
        _range(tests, "value"),
        _OVER_PAIRS,
        Interval(mean, min(row["low"] for row in drawn), max(row["high"] for row in drawn))
        if drawn
        else _exactly(mean),
        "directions with the data's covariance",
        "mean squared cosine of the principal angles between the subspaces of the unstable "
        "features of two SAEs; 1: the same subspace",
        "overlap-unstable",
    )


def _recovered_by_stable(data: RunData) -> Iterator[KeyNumber]:
    patched = data.evaluation.language_model if data.evaluation else None
    if patched is None:
        return
    effects = [patched.keep.get(name) for name in ("stable", as_active("stable"))]
    own, random = (_recovered(each) for each in effects)
    whole = _recovered(patched.full)
    if own is None or random is None or whole is None:
        return
    yield KeyNumber(
        "Loss recovered by stable features",
        own,
        "95 % interval over contexts",
        random,
        "random features of equal activation mass",
        "1: the loss of the unmodified model, 0: with zeros as activations; with the stable "
        f"features of SAE {patched.seed} alone; its whole reconstruction recovers "
        f"{whole.value:.2f}",
        "keep-drop-ce",
    )


def _recovered(effect: EffectRecord | None) -> Interval | None:
    """Return the recovered share of the cross entropy, or None if it was not measured."""
    if effect is None or effect.ce_score is None:
        return None
    value, half = effect.ce_score.value, _NORMAL * (effect.ce_score.error or float("nan"))
    return Interval(value, value - half, value + half)


def _agreement_of_unstable(data: RunData) -> Iterator[KeyNumber]:
    rows = [row for row in data.contributions if row["group"] == "unstable"]
    if not rows:
        return
    yield KeyNumber(
        "Agreement of unstable features",
        _range(rows, "r2"),
        _OVER_PAIRS,
        _range(rows, "r2_null"),
        "random features of equal activation mass",
        "squared correlation of the contributions of the unstable features of two SAEs to tokens",
        "contributions",
    )


def _explained(data: RunData) -> Iterator[KeyNumber]:
    if not data.evaluation:
        return
    yield KeyNumber(
        "Explained variance",
        student_interval([each.explained_variance for each in data.evaluation.seeds]),
        _OVER_SAES,
        _exactly(0.0),
        "the mean of the rows",
        "share of the variance that whole SAEs explain",
        "keep-drop",
    )


_FIND: tuple[Callable[[RunData], Iterator[KeyNumber]], ...] = (
    _stable_share,
    _explained_by_stable,
    _overlap_of_unstable,
    _recovered_by_stable,
    _agreement_of_unstable,
    _explained,
)


def _range(rows: TableRows, name: str) -> Interval:
    values = [row[name] for row in rows]
    return Interval(float(np.mean(values)), min(values), max(values))


def _exactly(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"))
