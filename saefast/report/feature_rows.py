"""Rows of the table of features, packed for the page."""

from typing import Any

import numpy as np

from saefast.report.document import packed_rows
from saefast.report.run_data import RunData

COLUMNS = (
    *("seed", "feature", "group", "score", "low", "high", "rate", "effect", "auroc", "token"),
    *("explanation", "kind", "rule_score", "rule_null"),
    *("detection", "detection_shuffled", "fuzzing", "steer_success", "steer_success_control"),
)
_CONTEXTS = 3
_NAMES = {
    "rate": "firing_rate",
    "auroc": "token_auroc",
    "token": "token_text",
    "kind": "explanation_kind",
}
_DIGITS = {"score": 3, "low": 3, "high": 3, "auroc": 3}


def packed_features(data: RunData) -> str:
    """Return the columns, partners and contexts of all features alive, packed for the page."""
    return packed_rows(feature_columns(data))


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
    if "partner" in features:
        columns["partners"] = [
            [
                [seed, int(partner), round(float(similarity), 2)]
                for seed, partner, similarity in zip(
                    data.seeds, features["partner"][i], features["similarity"][i], strict=True
                )
                if partner >= 0
            ]
            for i in place
        ]
    if data.contexts:
        keys = zip(columns["seed"], columns["feature"], strict=True)
        columns["contexts"] = [
            [
                [row["before"], row["token"], row["after"], float(f"{row['value']:.3g}")]
                for row in data.contexts.get(key, ())[:_CONTEXTS]
            ]
            for key in keys
        ]
    return columns


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not np.isfinite(value):
        return None
    return round(value, _DIGITS[name]) if name in _DIGITS else float(f"{value:.3g}")
