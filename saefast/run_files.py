"""Which files the folder of a run holds, and how they are written and read.

Each stage of a run writes its own files from those of stages before it; the report reads them all.
What a stage did not write is not there, and the report says so.

    settings.json       what was asked for: `saefast.pipeline.RunSettings`
    stages.json         which stages are finished, from what, and how long they took
    run.json metrics.jsonl seed-*/        written by `train_saes`
    store/train store/held-out            activations that the run made itself
    features.parquet    a row for each seed and feature; see `FEATURE_COLUMNS`
    matches/decoder matches/encoder       `match_all`: a table for each pair of SAEs
    stability.json      the rule, the shares of stable and unstable features, the curve, the null
    overlap.parquet     a row for each measure of each pair of SAEs: `Measure` and a, b
    membership.json     in how many SAEs features are, and how many are in one only
    subspaces/*.parquet the tables of `Subspaces`, and contributions.parquet: the rows of
                        `Contributions`; skipped.json: what of both could not be computed
    evaluation.json     explained variance, keep-only and drop, CE and KL where there is a model
    contexts.parquet    the text around the largest activations
    pooled/ pooling.json                  the pooled SAE, and what it is worth beside its controls
    report.html
    unfinished/         what a stage that takes long keeps until it is finished, to go on from
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saefast.atomic import write_whole

SETTINGS = "settings.json"
STAGES = "stages.json"
STORE = "store"
FEATURES = "features.parquet"
MATCHES = "matches"
STABILITY = "stability.json"
OVERLAP = "overlap.parquet"
MEMBERSHIP = "membership.json"
SUBSPACES = "subspaces"
CONTRIBUTIONS = "contributions.parquet"
SKIPPED = "skipped.json"
EVALUATION = "evaluation.json"
CONTEXTS = "contexts.parquet"
POOLED = "pooled"
POOLING = "pooling.json"
REPORT = "report.html"
UNFINISHED = "unfinished"

SUBSPACE_TABLES = ("spectra", "singular_values", "pairs", "curves", "angles", "nulls")

FEATURE_COLUMNS = {
    "seed": "the seed of its SAE",
    "feature": "the number of the latent in it",
    "alive": "whether it fires; the others have no score",
    "firing_rate": "share of the rows looked at on which it is positive; with it come the other "
    "columns of `FeatureStatistics.to_table`",
    "group": "stable, mixed, unstable or dead",
    "score": "share of the other SAEs that have it; with it come support, low, high and soft of "
    "`Stability`",
    "similarity": "[SAEs] to its partner in each",
    "partner": "[SAEs] which feature of each that is, -1 for none",
    "effect": "share of the variance that is lost if it alone is left out",
}
"""Of features.parquet"""

Table = Mapping[str, Any]
"""Columns by name"""


def write_json(path: Path, value: Any) -> None:
    """What is not a number becomes null, as JSON has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}; remove it and run its stage again") from (
            error
        )


def write_table(path: Path, columns: Table) -> None:
    """A Parquet file of columns of equal length."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The same of a list of rows; columns are those of all rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    write_table(path, {name: [row.get(name) for row in rows] for name in names})


def read_table(path: Path) -> Any:
    """The `pyarrow.Table`; None where there is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is truncated or not Parquet: {error}; remove it and run its stage again"
        ) from error


def add_columns(path: Path, columns: Table) -> None:
    """Put columns into a table on disk, instead of those of the same names."""
    table = read_table(path)
    kept = {} if table is None else {name: table[name] for name in table.column_names}
    write_table(path, {**kept, **columns})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
