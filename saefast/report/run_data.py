"""What the files of a run say: everything the report is made from."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefast.disk.tables import read_json, read_table
from saefast.evaluation.scores import Score
from saefast.run_folder import (
    CONTEXTS,
    CONTRIBUTIONS,
    EVALUATION,
    EVALUATION_NAMES,
    FEATURES,
    MATCHES,
    MEMBERSHIP,
    OVERLAP,
    POOLING,
    SCORES,
    SETTINGS,
    SKIPPED,
    STABILITY,
    STAGES,
    SUBSPACE_TABLES,
    SUBSPACES,
    evaluation_file,
)
from saefast.run_records import (
    EvaluationRecord,
    EvaluationSummary,
    MembershipRecord,
    PoolingRecord,
    Record,
    StabilityRecord,
    StageRecord,
    read_record,
)
from saefast.train.checkpoint import RUN

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunData:
    """The files of one run, each read when it is asked for; None or empty where there is none.

    Files of a stage that has to run again, since one before it did, count as not there.
    """

    run: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json"""
        return read_json(self.run / RUN) or {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """settings.json"""
        return read_json(self.run / SETTINGS) or {}

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """stages.json"""
        return read_record(self.run / STAGES, dict[str, StageRecord]) or {}

    def current(self, stage: str) -> bool:
        """Whether what a stage wrote goes with what the others wrote."""
        return not self.stages or stage in self.stages

    @cached_property
    def stability(self) -> StabilityRecord | None:
        """stability.json"""
        return self._record("stability", STABILITY, StabilityRecord)

    @cached_property
    def membership(self) -> MembershipRecord | None:
        """membership.json"""
        return self._record("stability", MEMBERSHIP, MembershipRecord)

    @cached_property
    def evaluation(self) -> EvaluationRecord | None:
        """evaluation.json"""
        return self._record("evaluate", EVALUATION, EvaluationRecord)

    @cached_property
    def pooling(self) -> PoolingRecord | None:
        """pooling.json"""
        return self._record("pool", POOLING, PoolingRecord)

    @cached_property
    def skipped(self) -> list[str]:
        """Which parts of the subspace analysis could not be computed."""
        return self._record("subspace", f"{SUBSPACES}/{SKIPPED}", list[str]) or []

    @cached_property
    def overlap(self) -> Rows:
        """overlap.parquet"""
        return _rows(self.run / OVERLAP) if self.current("match") else []

    @cached_property
    def subspaces(self) -> dict[str, Rows]:
        """The tables of `Subspaces`."""
        known = self.current("subspace")
        return {
            name: _rows(self.run / SUBSPACES / f"{name}.parquet") if known else []
            for name in SUBSPACE_TABLES
        }

    @cached_property
    def contributions(self) -> Rows:
        """subspaces/contributions.parquet"""
        return _rows(self.run / SUBSPACES / CONTRIBUTIONS) if self.current("subspace") else []

    @cached_property
    def features(self) -> dict[str, Any]:
        """The columns of features.parquet, as arrays."""
        table = read_table(self.run / FEATURES)
        if table is None:
            return {}
        known = [name for name in table.column_names if self.stability or name not in _SCORED]
        return {name: _column(table[name]) for name in known}

    @cached_property
    def scores(self) -> list[Score]:
        """evaluation/scores.parquet

        Raises:
            ValueError: its columns are not those of scores.
        """
        path = self.run / SCORES
        try:
            scores = [Score(**_without_nulls(row)) for row in _rows(path)]
        except TypeError as error:
            raise ValueError(
                f"{path} is no table of scores: {error}; remove it and run saefast evaluate again"
            ) from error
        return [score for score in scores if self.current(score.evaluation)]

    @cached_property
    def summaries(self) -> dict[str, EvaluationSummary]:
        """By name of the evaluation, evaluation/NAME.json."""
        found = {
            name: self._record(name, evaluation_file(name), EvaluationSummary)
            for name in EVALUATION_NAMES
        }
        return {name: summary for name, summary in found.items() if summary is not None}

    @cached_property
    def contexts(self) -> dict[tuple[int, int], Rows]:
        """By seed and feature, the text around its largest activations."""
        found: dict[tuple[int, int], Rows] = {}
        for row in _rows(self.run / CONTEXTS):
            found.setdefault((row["seed"], row["feature"]), []).append(row)
        return found

    @cached_property
    def sides(self) -> dict[str, Any] | None:
        """Of the first pair of SAEs: cosines by decoder and encoder, and whether partners agree."""
        tables = [read_table(self.run / MATCHES / side / "0-1.parquet") for side in _SIDES]
        if any(table is None for table in tables) or not self.current("match"):
            return None
        columns = [{name: _column(table[name]) for name in table.column_names} for table in tables]
        mine = columns[0]["dictionary"] == 0
        partner = [each["partner"][mine] for each in columns]
        known = (partner[0] >= 0) & (partner[1] >= 0)
        return {
            **{
                side: each["similarity"][mine][known]
                for side, each in zip(_SIDES, columns, strict=True)
            },
            "same": (partner[0] == partner[1])[known],
        }

    @cached_property
    def metrics(self) -> Rows:
        """The lines of metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [row for line in lines if (row := _parsed(line)) is not None]

    def _record(self, stage: str, name: str, kind: type[Record]) -> Record | None:
        return read_record(self.run / name, kind) if self.current(stage) else None

    @property
    def seeds(self) -> list[int]:
        """In the order in which everything counts the SAEs."""
        if self.stability:
            return [each.seed for each in self.stability.seeds]
        return [seed for config in self.facts.get("configs", []) for seed in config["seeds"]]

    def alive(self, name: str) -> NDArray[Any]:
        """A column, of features alive alone."""
        values: NDArray[Any] = self.features[name][self.features["alive"]]
        return values


_SIDES = ("decoder", "encoder")
_SCORED = ("group", "score", "support", "low", "high", "soft", "similarity", "partner", "alive")
"""Columns of features.parquet that the stability stage wrote"""


def _rows(path: Path) -> Rows:
    table = read_table(path)
    return [] if table is None else table.to_pylist()


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that are not known by NaN."""
    return {
        name: float("nan") if value is None and name != "seed" else value
        for name, value in row.items()
    }


def _column(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return np.asarray(column.to_pylist())  # [features, SAEs]
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _parsed(line: str) -> dict[str, Any] | None:
    """None for the last line of a process that was killed."""
    try:
        return dict(json.loads(line))
    except (json.JSONDecodeError, TypeError):
        return None
