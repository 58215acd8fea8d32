"""A small run of every stage, and files that a language model would add to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from saefast.disk.tables import add_columns, read_json, read_table, write_json, write_table
from saefast.pipeline import run_pipeline
from saefast.pipeline.settings_file import settings_from
from saefast.run_folder import CONTEXTS, EVALUATION, FEATURES

SETTINGS: dict[str, dict[str, Any]] = {
    "planted": {
        "d": 24,
        "stable": 24,
        "rank": 8,
        "rare": 96,
        "rare_rate": 0.006,
        "rows": 12_000,
        "held_out": 3000,
    },
    "train": {
        "latents": 48,
        "k": 3,
        "seeds": [0, 1, 2, 3],
        "tokens": 40_000,
        "batch_size": 128,
        "lr": 8e-3,
        "auxk": {"dead_after": 5000},
    },
    "subspace": {"draws": 3},
    "pool": {"tokens": 1000, "scratch_tokens": 4000},
}


def as_toml(settings: dict[str, dict[str, Any]]) -> str:
    """Format settings as TOML."""

    def formatted(value: Any) -> str:
        if isinstance(value, dict):
            return (
                "{" + ", ".join(f"{name} = {formatted(its)}" for name, its in value.items()) + "}"
            )
        if isinstance(value, list):
            return "[" + ", ".join(map(formatted, value)) + "]"
        return json.dumps(value)  # TOML formats strings and numbers like JSON

    lines = []
    for table, its in settings.items():
        lines += [f"[{table}]", *(f"{name} = {formatted(value)}" for name, value in its.items())]
    return "\n".join(lines)


NASTY = "</script><script>alert(1)</script>&\"'\u2028<b>"
"""Text of a token that would end or open elements if it were not escaped"""


def tiny_run(out: Path) -> Path:
    """Run all stages but the report, on planted rows."""
    run_pipeline(settings_from(SETTINGS), out, until="pool", progress=False)
    run_pipeline(settings_from(SETTINGS), out, until="subspace", resume=True, progress=False)
    run_pipeline(settings_from(SETTINGS), out, until="evaluate", resume=True, progress=False)
    return out


def with_language_model(planted: Path, run: Path) -> Path:
    """Make a copy with tokens, contexts and losses, as if harvested from a language model."""
    shutil.copytree(planted, run)
    table = read_table(run / FEATURES)
    count = table.num_rows
    generator = np.random.default_rng(0)
    tokens = [f"{NASTY}{i}" for i in range(count)]
    columns = {"token_text": tokens, "token_auroc": 0.5 + generator.random(count) / 2}
    add_columns(run / FEATURES, columns)
    seeds, features = (table[name].to_numpy() for name in ("seed", "feature"))
    write_table(
        run / CONTEXTS,
        {
            "seed": np.repeat(seeds, 2),
            "feature": np.repeat(features, 2),
            "value": np.tile([2.0, 1.0], count),
            "before": [f"before {i} \n" for i in range(2 * count)],
            "token": [tokens[i // 2] for i in range(2 * count)],
            "after": [" after"] * (2 * count),
        },
    )

    def effect(ce: float) -> dict[str, dict[str, float]]:
        losses = {name: {"value": ce, "error": 0.01} for name in ("ce", "kl")}
        return losses | {"ce_score": {"value": (9.0 - ce) / (9.0 - 2.5), "error": 0.01}}

    groups = {"stable": 3.5, "stable:mass": 3.9, "unstable": 7.25, "unstable:mass": 7.5}
    evaluation = read_json(run / EVALUATION)
    evaluation["language_model"] = {
        "seed": 0,
        "contexts": 4,
        "predictions": 1000,
        "clean": effect(2.5),
        "zero": effect(9.0),
        "mean": effect(8.0),
        "full": effect(3.0),
        "keep": {name: effect(ce) for name, ce in groups.items()},
        "drop": {name: effect(10.5 - ce) for name, ce in groups.items()},
    }
    write_json(run / EVALUATION, evaluation)
    return run
