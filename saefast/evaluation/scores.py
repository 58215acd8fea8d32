"""Results of evaluations: scores with floors, rivals, ceilings and intervals."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from saefast.evaluation.intervals import (
    Interval,
    smallest_difference,
)
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa

_NAN = float("nan")

TRAINED = "trained"
"""Condition of the SAEs that are evaluated; all others are rivals and baselines"""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured value; a row of RUN/evaluation/scores.parquet."""

    evaluation: str
    """probe, explain, steer, edit, absorb or core"""
    measure: str
    """name of the measure"""
    condition: str
    """`TRAINED`, the name of a `Condition`, or "trained - NAME" for a difference"""
    value: float
    """mean over the items"""
    low: float
    """lower end of the 95 % interval; NaN where there is none"""
    high: float
    """upper end of that interval"""
    n: int
    """number of items averaged"""
    task: str = ""
    """"" for all tasks together"""
    seed: int | None = None
    """position of the SAE in its condition; None for all together"""
    group: str = ""
    """group of latents; "" for all, "NAME:mass" for random latents of the same activation mass"""
    floor: float = _NAN
    """value without information"""
    rival: str = ""
    """name of the best trivial rival"""
    rival_value: float = _NAN
    """value of that rival"""
    ceiling: float = _NAN
    """best attainable value; NaN where none is known"""
    primary: bool = False
    """whether the measure is the primary one of its evaluation"""

    @property
    def interval(self) -> Interval:
        """The value with its 95 % interval."""
        return Interval(self.value, self.low, self.high)

    def difference_to_trained(self, difference: Interval) -> "Score":
        """Return the row of the difference of the trained SAEs to this row's condition.

        Args:
            difference: the difference with its interval.

        Returns:
            A row with the difference as its value, 0 as its floor and neither rival nor ceiling.
        """
        return dataclasses.replace(
            self,
            **difference._asdict(),
            condition=f"{TRAINED} - {self.condition}",
            floor=0.0,
            rival="",
            rival_value=_NAN,
            ceiling=_NAN,
            primary=False,
        )


_TYPES = {"str": "string", "float": "double", "int": "int64", "bool": "bool"}
_COLUMNS = {
    name: _TYPES[getattr(hint, "__name__", "int")] for name, hint in get_type_hints(Score).items()
}
"""Type of each column of the table of scores"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one evaluation, in the order of display."""

    name: str
    """name of the evaluation"""
    scores: tuple[Score, ...]
    """all scores, for every measure, condition, group, SAE and task"""
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """by measure, standard deviation of the overall value over repetitions of the evaluation with
    other seeds, measured or estimated by resampling its items"""
    features: tuple[Mapping[str, Any], ...] = ()
    """for each trained SAE its columns of features.parquet: tensors [m] or lists of m items"""
    notes: tuple[str, ...] = ()
    """sentences on omissions, with counts, and on limits of the scores"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each score."""
        import pyarrow as pa

        rows = [dataclasses.asdict(score) for score in self.scores]
        # The schema gives tables without scores or without a seed the same columns as all others.
        return pa.Table.from_pylist(rows, schema=pa.schema(list(_COLUMNS.items())))

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions other than the trained SAEs."""
        names = dict.fromkeys(score.condition for score in self.scores)
        return [name for name in names if name != TRAINED and not name.startswith(f"{TRAINED} - ")]

    def overall(self, measure: str, condition: str = TRAINED, group: str = "") -> Score:
        """Return the score over all tasks and seeds.

        Args:
            measure: name of the measure.
            condition: name of the condition.
            group: group of latents; "" for all.

        Returns:
            The score with these three names.

        Raises:
            KeyError: there is none.
        """
        for score in self.scores:
            same = (score.measure, score.condition, score.group) == (measure, condition, group)
            if same and not score.task and score.seed is None:
                return score
        raise KeyError(f"{self.name} has no {measure!r} of {condition!r} in group {group!r}")

    def lines(self) -> list[str]:
        """Return scores over all tasks and seeds as lines of text, then noise and notes.

        The primary measure is shown for all conditions and groups, other measures for the trained
        SAEs only; `to_table` contains the rest.
        """
        overall = [score for score in self.scores if not score.task and score.seed is None]
        primary = {score.measure for score in overall if score.primary}
        found = [
            score
            for score in overall
            if score.measure in primary or (score.condition == TRAINED and not score.group)
        ]
        lines = _aligned([_HEADER, *(_cells(score) for score in found)]) if found else []
        if len(found) < len(overall):
            lines.append(
                f"{len(overall) - len(found)} scores of other conditions and groups are in the "
                f"table of scores"
            )
        for measure, noise in self.noise.items():
            lines.append(
                f"{measure}: differences of two SAEs below {smallest_difference(noise):.3f} are "
                f"within the noise of the evaluation"
            )
        return [*lines, *self.notes]


_HEADER = (
    "measure",
    "condition",
    "value",
    "95 % interval",
    "floor",
    "best trivial rival",
    "ceiling",
)


def _cells(score: Score) -> tuple[str, ...]:
    who = f"{score.condition}, {score.group}" if score.group else score.condition
    rival = f"{score.rival} {score.rival_value:.3f}" if score.rival else ""
    interval = "" if math.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"
    return (
        score.measure,
        who,
        _number(score.value),
        interval,
        _number(score.floor),
        rival,
        _number(score.ceiling),
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
