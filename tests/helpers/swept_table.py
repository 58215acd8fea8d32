"""Folder of a sweep with a table of results whose numbers are chosen by a test."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saefast.disk.tables import write_rows
from saefast.run_records import write_record
from saefast.sweep import SweepFolder
from saefast.sweep.definition import cell_name
from saefast.sweep.records import SweepRecord

Row = dict[str, Any]
AXES = {"train.latents": [64, 128, 256], "train.k": [4, 8], "train.variant": ["topk", "relu"]}
SEEDS = (0, 1)


def with_ends(name: str, value: float, low: str = "low", high: str = "high") -> Row:
    return {name: value, f"{name}_{low}": value - 0.03, f"{name}_{high}": value + 0.03}


def measured(at: Mapping[str, Any]) -> Row:
    """Return every measure there can be, as a function of the settings."""
    latents, k = at.get("train.latents", 64), at.get("train.k", 4)
    stable = 0.9 - latents / 1000 - k / 100
    overlaps = {"": 0.8, "_haar": 0.1, "_covariance": 0.3}
    return {
        **with_ends("stable_share", stable),
        **with_ends("unstable_share", 0.95 - stable),
        **with_ends("stability", stable),
        "stability_null": 0.05,
        **{
            key: value
            for name in ("shared", "mmcs", "pw_mcc")
            for key, value in with_ends(name, stable, "min", "max").items()
        },
        **{f"{name}_null": latents / 10_000 for name in ("shared", "mmcs", "pw_mcc")},
        "explained_variance": 0.5 + k / 100,
        "l0": float(k),
        "dead_share": 0.02,
        **{
            f"{group}_overlap{null}": v
            for group in ("stable", "unstable")
            for null, v in overlaps.items()
        },
        **{
            f"{group}_keep{control}": 0.3
            for group in ("stable", "unstable")
            for control in ("", "_mass")
        },
        "ce_clean": 3.0,
        "ce": 3.4,
        "ce_error": 0.01,
        "kl": 0.35,
        **{
            f"ce_{group}{control}": 3.9
            for group in ("stable", "unstable")
            for control in ("", "_mass")
        },
        **with_ends("probe.auroc", 0.8),
        "probe.auroc_floor": 0.5,
    }


def swept_table(
    root: Path,
    axes: Mapping[str, Sequence[Any]] = AXES,
    change: Callable[[Row], Row | None] = lambda row: row,
    values: Callable[[Mapping[str, Any]], Row] = measured,
) -> SweepFolder:
    """Write sweep.json and results.parquet.

    Args:
        root: folder of the sweep.
        axes: axes of the grid and their values.
        change: function that is given each row of the table and returns what is written; None:
            no row.
        values: measures of a cell by its settings.

    Returns:
        The folder of the sweep.
    """
    folder = SweepFolder(root)
    cells, rows = {}, []
    for chosen in itertools.product(*axes.values()) if axes else ():
        at = dict(zip(axes, chosen, strict=True))
        name = cell_name(at)
        cells[name] = at
        known = {
            "cell": name,
            "status": "finished",
            "reason": None,
            "seeds": 2,
            "lr": 0.01,
            "saefast": "0.1.0",
            "torch": "2.13.0",
            "machine": "here",
            "device": "cpu",
        }
        report = f"cells/{name}/report.html"
        whole = {
            **known,
            "level": "cell",
            "seed": None,
            **values(at),
            "seconds": 12.5,
            "report": report,
        }
        saes = [{**known, "level": "sae", "seed": seed, **values(at)} for seed in SEEDS]
        for sae in saes:
            for column in ("explained_variance", "l0", "dead_share"):
                if column in sae:
                    sae[column] += 0.01 * (2 * sae["seed"] - 1)
        rows += [whole, *saes]
    write_record(root / "sweep.json", SweepRecord(list(axes), "report", cells))
    write_rows(folder.results, [row for row in map(change, rows) if row is not None])
    return folder
