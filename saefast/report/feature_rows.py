"""Rows of the table of features, packed for the page.

The columns that the table shows, sorts and filters by are unpacked when the page opens.
Contexts and partners, most of the bytes, are packed in pieces of `ROWS_OF_PIECE` rows, unpacked
when one of their rows is shown.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefast.report.document import packed_rows
from saefast.report.run_data import RunData, TableRows

COLUMNS = (
    *("seed", "feature", "group", "score", "low", "high", "rate", "effect", "auroc", "token"),
    *("explanation", "kind", "rule_score", "rule_null"),
    *("detection", "detection_shuffled", "fuzzing", "steer_success", "steer_success_control"),
)
ROWS_OF_PIECE = 256
"""Number of rows whose contexts and partners are unpacked together"""
_CONTEXTS = 3
_NAMES = {
    "rate": "firing_rate",
    "auroc": "token_auroc",
    "token": "token_text",
    "kind": "explanation_kind",
}
_DIGITS = {"score": 3, "low": 3, "high": 3, "auroc": 3}


def packed_features(data: RunData, members: Mapping[str, NDArray[Any]]) -> tuple[str, str]:
    """Return the rows of all features alive, packed for the page.

    Args:
        data: files of the run.
        members: `Figure.members` by the name of the figure.

    Returns:
        An element with the columns of the table, and elements with contexts and partners.
    """
    details = feature_details(data)
    count = max(map(len, details.values()), default=0)
    pieces = (
        packed_rows(
            {name: rows[start : start + ROWS_OF_PIECE] for name, rows in details.items()},
            f"details-{start // ROWS_OF_PIECE}",
        )
        for start in range(0, count, ROWS_OF_PIECE)
    )
    columns = feature_columns(data) | {
        "marks": {name: marks.tolist() for name, marks in members.items()},
        "rowsOfPiece": ROWS_OF_PIECE,
    }
    return packed_rows(columns), "".join(pieces)


def feature_columns(data: RunData) -> dict[str, Any]:
    """Return a list with an entry for each feature alive, by column; unknown columns are absent."""
    features = data.features
    if not features:
        return {}
    place = np.flatnonzero(data.living)
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        of = _NAMES.get(name, name)
        if of in features:
            columns[name] = [_plain(name, value) for value in features[of][place].tolist()]
    if data.contexts:
        columns["top"] = [own[0]["token"] if own else "" for own in _contexts(data)]
    return columns


def feature_details(data: RunData) -> dict[str, list[Any]]:
    """Return the contexts and partners of each feature alive; absent where the run has none."""
    features = data.features
    details: dict[str, list[Any]] = {}
    if data.contexts:
        details["contexts"] = [
            [
                [row["before"], row["token"], row["after"], float(f"{row['value']:.3g}")]
                for row in own[:_CONTEXTS]
            ]
            for own in _contexts(data)
        ]
    if "partner" in features:
        alive = zip(data.alive("partner").tolist(), data.alive("similarity").tolist(), strict=True)
        details["partners"] = [
            [
                [seed, partner, round(similarity, 2)]
                for seed, partner, similarity in zip(data.seeds, *both, strict=True)
                if partner >= 0
            ]
            for both in alive
        ]
    return details


def _contexts(data: RunData) -> list[TableRows]:
    """Return the contexts of each feature alive, the largest activation first."""
    keys = zip(data.alive("seed").tolist(), data.alive("feature").tolist(), strict=True)
    return [data.contexts.get(key, []) for key in keys]


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not np.isfinite(value):
        return None
    return round(value, _DIGITS[name]) if name in _DIGITS else float(f"{value:.3g}")
