"""Files of a run, the input of the report."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
from saefast.train.checkpoint import RunFile

TableRows = list[dict[str, Any]]


@contextmanager
def named_in_errors(folder: Path) -> Iterator[None]:
    """Name a folder in errors caused by files that are damaged or do not fit together.

    Args:
        folder: folder of a run or sweep.

    Yields:
        None, while the files are used.

    Raises:
        ValueError: in place of errors that do not name the folder.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if str(folder) in str(error):
            raise
        raise ValueError(
            f"{folder} holds files that are damaged or do not fit together "
            f"({type(error).__name__}: {error}); saefast verify finds damaged ones, and saefast "
            f"run repeats the stages of files that are removed"
        ) from error


@dataclass(frozen=True)
class RunData:
    """Files of one run, each read on first access; None or empty if absent.

    Files of a stage that has to run again, since an earlier stage did, count as absent.
    """

    run: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Content of run.json."""
        training = RunFile.read(self.run)
        return {} if training is None else training.facts

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Content of settings.json."""
        return read_json(self.run / SETTINGS) or {}

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """Content of stages.json."""
        return read_record(self.run / STAGES, dict[str, StageRecord]) or {}

    def current(self, stage: str) -> bool:
        """Return whether the files of a stage match the latest files of earlier stages."""
        return not self.stages or stage in self.stages

    @cached_property
    def stability(self) -> StabilityRecord | None:
        """Content of stability.json."""
        return self._record("stability", STABILITY, StabilityRecord)

    @cached_property
    def membership(self) -> MembershipRecord | None:
        """Content of membership.json."""
        return self._record("stability", MEMBERSHIP, MembershipRecord)

    @cached_property
    def evaluation(self) -> EvaluationRecord | None:
        """Content of evaluation.json."""
        return self._record("evaluate", EVALUATION, EvaluationRecord)

    @cached_property
    def pooling(self) -> PoolingRecord | None:
        """Content of pooling.json."""
        return self._record("pool", POOLING, PoolingRecord)

    @cached_property
    def skipped(self) -> list[str]:
        """Parts of the subspace analysis that could not be computed."""
        return self._record("subspace", f"{SUBSPACES}/{SKIPPED}", list[str]) or []

    @cached_property
    def overlap(self) -> TableRows:
        """Rows of overlap.parquet."""
        return _rows(self.run / OVERLAP) if self.current("match") else []

    @cached_property
    def subspaces(self) -> dict[str, TableRows]:
        """Tables of `Subspaces` by name."""
        known = self.current("subspace")
        return {
            name: _rows(self.run / SUBSPACES / f"{name}.parquet") if known else []
            for name in SUBSPACE_TABLES
        }

    @cached_property
    def contributions(self) -> TableRows:
        """Rows of subspaces/contributions.parquet."""
        return _rows(self.run / SUBSPACES / CONTRIBUTIONS) if self.current("subspace") else []

    @cached_property
    def features(self) -> dict[str, Any]:
        """Columns of features.parquet, as arrays."""
        table = read_table(self.run / FEATURES)
        if table is None:
            return {}
        known = [name for name in table.column_names if self.stability or name not in _SCORED]
        return {name: _column(table[name]) for name in known}

    @cached_property
    def scores(self) -> list[Score]:
        """Rows of evaluation/scores.parquet.

        Raises:
            ValueError: if its columns are not those of scores.
        """
        path = self.run / SCORES
        try:
            scores = [Score(**_without_nulls(row)) for row in _rows(path)]
        except TypeError as error:
            raise ValueError(
                f"{path} is not a table of scores: {error}; remove it and run saefast evaluate "
                f"again"
            ) from error
        return [score for score in scores if self.current(score.evaluation)]

    @cached_property
    def summaries(self) -> dict[str, EvaluationSummary]:
        """Contents of evaluation/NAME.json, by the name of the evaluation."""
        found = {
            name: self._record(name, evaluation_file(name), EvaluationSummary)
            for name in EVALUATION_NAMES
        }
        return {name: summary for name, summary in found.items() if summary is not None}

    @cached_property
    def contexts(self) -> dict[tuple[int, int], TableRows]:
        """Text around the largest activations, by seed and feature."""
        found: dict[tuple[int, int], TableRows] = {}
        for row in _rows(self.run / CONTEXTS):
            found.setdefault((row["seed"], row["feature"]), []).append(row)
        return found

    @cached_property
    def sides(self) -> dict[str, Any] | None:
        """Features of the first SAE, their cosines to partners in the second, and agreement."""
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
            "feature": columns[0]["feature"][mine][known],
            "same": (partner[0] == partner[1])[known],
        }

    @cached_property
    def metrics(self) -> TableRows:
        """Lines of metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [row for line in lines if (row := _parsed(line)) is not None]

    def _record(self, stage: str, name: str, kind: type[Record]) -> Record | None:
        return read_record(self.run / name, kind) if self.current(stage) else None

    @property
    def seeds(self) -> list[int]:
        """Seeds of the SAEs, in the order of all tables."""
        if self.stability:
            return [each.seed for each in self.stability.seeds]
        return [seed for config in self.facts.get("configs", []) for seed in config["seeds"]]

    @cached_property
    def similarity(self) -> str:
        """Name of the similarity of features: "cosine", or "absolute cosine"."""
        signs = {row["sign"] for row in self.overlap}
        return "absolute cosine" if "absolute" in signs else "cosine"

    @property
    def living(self) -> NDArray[Any]:
        """Mask of the features alive, [features]."""
        features = self.features
        alive: NDArray[Any] = (
            features["alive"] if "alive" in features else features["firing_rate"] > 0
        )
        return alive

    def alive(self, name: str) -> NDArray[Any]:
        """Return a column for features alive only."""
        values: NDArray[Any] = self.features[name][self.living]
        return values


_SIDES = ("decoder", "encoder")
_SCORED = ("group", "score", "support", "low", "high", "soft", "similarity", "partner", "alive")
"""Columns of features.parquet that the stability stage writes."""


def _rows(path: Path) -> TableRows:
    table = read_table(path)
    return [] if table is None else table.to_pylist()


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Replace unknown numbers by NaN."""
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
    """Return the object, or None for a line that a killed process left incomplete."""
    try:
        return dict(json.loads(line))
    except (json.JSONDecodeError, TypeError):
        return None
