"""Table of the results of a sweep, with a row for each SAE and each cell."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from saefast.disk.tables import write_rows
from saefast.evaluation.intervals import (
    Interval,
    interval_of_equal_items,
    mean_interval,
)
from saefast.evaluation.scores import TRAINED
from saefast.pipeline.job import Job
from saefast.pipeline.runner import is_finished_until
from saefast.pipeline.settings_file import settings_from
from saefast.report.run_data import RunData, named_in_errors
from saefast.run_folder import REPORT
from saefast.sweep.folder import CELLS, SweepFolder
from saefast.sweep.records import SweepRecord
from saefast.sweep.sae_stability import number_or_none, stability_of_saes, with_ends
from saefast.train.config import labels_of

Row = dict[str, Any]

_SHARED_AT = 0.7
_GROUPS = ("stable", "unstable")
_QUALITY = (
    *("explained_variance", "l0", "dead_share"),
    *(f"{group}_keep{control}" for group in _GROUPS for control in ("", "_mass")),
)
_TRAINING = ("lr", "tokens", "batch_size", "data_seed", "precision")


def write_results(folder: SweepFolder) -> list[Row]:
    """Write results.parquet of a sweep from the folders of its cells, and return its rows.

    Args:
        folder: folder of the sweep.

    Returns:
        The row of each cell, followed by the rows of its SAEs. Columns are

        - cell, level ("cell" or "sae"), seed (of an SAE), status (finished, failed or unfinished)
          and reason (of a failure, one line);
        - the value on each axis by its dotted name, or sets.NAME, as JSON if an axis has lists,
          tables or values of several types; source, model, site, variant, latents, k and other
          settings of the training;
        - explained_variance and, from the last report of the training, l0 and dead_share;
        - stable_share and unstable_share of the alive features, and stability, their mean score,
          each with the ends of a 95 % interval (_low, _high): over the features of an SAE, or over
          the SAEs of a cell; stability_null, the score of random directions;
        - for pairs of SAEs, or pairs that contain an SAE, the means of shared (nearest decoder rows
          with a cosine of at least 0.7), mmcs and pw_mcc, each with the value of random directions
          (_null) and the range over pairs (_min, _max);
        - for the groups stable and unstable, the mean overlap of subspaces (GROUP_overlap), its
          nulls (GROUP_overlap_NULL), the explained variance with the features of the group alone
          (GROUP_keep) and with random features of equal activation mass (GROUP_keep_mass);
        - for cells, ce_clean, ce, ce_error and kl of a language model with the reconstructions of
          one SAE, ce_GROUP with those of a group alone and ce_GROUP_mass with those of random
          features of equal activation mass;
        - for cells, EVALUATION.MEASURE of primary measures with _low, _high and _floor, if
          evaluations by name have run;
        - for cells, seconds of all stages and report, the path of its page; for all rows machine,
          processor, device, threads, commit, saefast and torch, and digest of the settings.
    """
    record = folder.read()
    rows = []
    for name in record.cells:
        with named_in_errors(folder.cell(name)):
            rows += _rows_of_cell(folder, record, name)
    for axis in record.axes:
        _to_one_type(rows, _column(axis))
    write_rows(folder.results, rows)
    return rows


def _rows_of_cell(folder: SweepFolder, record: SweepRecord, name: str) -> list[Row]:
    """Return the row of a cell and those of its SAEs."""
    data = RunData(folder.cell(name))
    settings = settings_from(data.settings) if data.settings else None
    failure, done = folder.failure(name), folder.done(name)
    status = "unfinished" if failure is None else "failed"
    if settings and is_finished_until(Job(data.run, settings, False), record.until):
        status = "finished"
    known: Row = {
        "cell": name,
        "status": status,
        "reason": failure.reason if failure and status == "failed" else None,
        **{_column(axis): value for axis, value in record.cells[name].items()},
        **_settings(data),
        **(vars(done) if done else {}),
        "digest": _digest(data.settings) if data.settings else None,
    }
    seconds = round(sum(stage.seconds for stage in data.stages.values()), 3)
    saes = data.seeds if data.stability or data.facts.get("finished") else []
    labels = labels_of([settings.train]) if settings else []
    overlaps, stability = _overlaps(data), stability_of_saes(folder, name, data)
    last = {row["sae"]: row for row in data.metrics}
    lines: list[Row] = [
        {
            **known,
            "level": "sae",
            "seed": seed,
            **_quality(data, place, last.get(labels[place], {})),
            **(stability[place] if stability else {}),
            **_pairs([row for row in overlaps if place in (row["a"], row["b"])]),
            **_subspaces(data, place),
        }
        for place, seed in enumerate(saes)
    ]
    whole: Row = {
        **known,
        "level": "cell",
        "seed": None,
        **{key: _mean(line.get(key) for line in lines) for key in (_QUALITY if lines else ())},
        **_stability_of_cell(data, lines),
        **_pairs(overlaps),
        **_subspaces(data, None),
        **_language_model(data),
        **_evaluations(data),
        "seconds": seconds,
        "report": f"{CELLS}/{name}/{REPORT}" if (data.run / REPORT).is_file() else None,
    }
    return [whole, *lines]


def _settings(data: RunData) -> Row:
    """Return the settings that are columns of the table."""
    settings = data.settings
    if not settings:
        return {}
    train = settings["train"]
    source = next(name for name in ("harvest", "planted", "store", "trained") if name in settings)
    return {
        "source": source,
        "model": settings[source].get("model"),
        "site": settings[source].get("site"),
        **{name: train[name] for name in ("variant", "latents", "k", *_TRAINING)},
        "seeds": len(train["seeds"]),
    }


def _digest(settings: Row) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _column(axis: str) -> str:
    """Return the name of the column of an axis; names of sets get a prefix."""
    return axis if "." in axis else f"sets.{axis}"


def _to_one_type(rows: list[Row], column: str) -> None:
    """Convert a column to JSON if it has lists, tables, or values of several types."""
    kinds = {type(row[column]) for row in rows if row[column] is not None}
    if kinds & {list, dict} or (len(kinds) > 1 and kinds != {int, float}):
        for row in rows:
            row[column] = json.dumps(row[column])


def _quality(data: RunData, place: int, last: Row) -> Row:
    """Return the quality of reconstructions of an SAE, held-out if evaluated, else in training."""
    seeds = data.evaluation.seeds if data.evaluation else []
    held_out = seeds[place].explained_variance if seeds else last.get("explained_variance")
    found: Row = {
        "explained_variance": held_out,
        "l0": last.get("l0"),
        "dead_share": last.get("dead_share"),
    }
    for line in seeds[place].groups if seeds else ():
        if line.group in _GROUPS and line.control in ("", "mass") and line.features:
            suffix = f"_{line.control}" if line.control else ""
            found[f"{line.group}_keep{suffix}"] = line.keep
    return found


def _stability_of_cell(data: RunData, lines: list[Row]) -> Row:
    """Return the means over the SAEs of a cell, with intervals."""
    if data.stability is None:
        return {}
    return {
        **{
            key: value
            for name in ("stable_share", "unstable_share", "stability")
            for key, value in with_ends(name, _over_saes([line[name] for line in lines])).items()
        },
        "stability_null": float(np.mean(data.stability.chance)),
    }


def _over_saes(shares: Sequence[float | None]) -> Interval:
    """Return the mean of shares and its interval, which is not empty even for equal shares."""
    known = [share for share in shares if share is not None]
    interval = mean_interval(known)
    if interval.low == interval.high:
        return interval_of_equal_items(interval.value, len(known), 0.0, 1.0)
    return interval


def _overlaps(data: RunData) -> list[Row]:
    """Return the measures of pairs that are columns of the table, for decoder rows."""
    wanted = {("mmcs", "nearest"), ("pw_mcc", "one_to_one"), ("shared", "nearest")}
    return [
        row
        for row in data.overlap
        if (row["name"], row["match"]) in wanted
        and row["of"] == "both"
        and row["side"] == "decoder"
        and row["threshold"] in (None, _SHARED_AT)
    ]


def _pairs(overlaps: list[Row]) -> Row:
    found: Row = {}
    for name in ("shared", "mmcs", "pw_mcc"):
        rows = [row for row in overlaps if row["name"] == name and row["value"] is not None]
        if rows:
            values = [row["value"] for row in rows]
            found[name] = _mean(values)
            found[f"{name}_null"] = _mean(row["null"] for row in rows)
            found[f"{name}_min"], found[f"{name}_max"] = min(values), max(values)
    return found


def _subspaces(data: RunData, place: int | None) -> Row:
    """Return mean overlaps of subspaces and their nulls, over all pairs or those of one SAE."""
    found: Row = {}
    for group in _GROUPS:
        rows = [
            row
            for row in data.subspaces["nulls"]
            if row["group"] == group
            and row["statistic"] == "overlap"
            and (place is None or place in (row["a"], row["b"]))
        ]
        pairs = {(row["a"], row["b"]): row["value"] for row in rows}
        if pairs:
            found[f"{group}_overlap"] = _mean(pairs.values())
        for null in dict.fromkeys(row["null"] for row in rows):
            found[f"{group}_overlap_{null}"] = _mean(
                row["mean"] for row in rows if row["null"] == null
            )
    return found


def _language_model(data: RunData) -> Row:
    """Return the losses of the language model with and without reconstructions."""
    model = data.evaluation.language_model if data.evaluation else None
    if model is None:
        return {}
    found: Row = {
        "ce_clean": model.clean.ce.value,
        "ce": model.full.ce.value,
        "ce_error": model.full.ce.error,
        "kl": model.full.kl.value if model.full.kl else None,
    }
    for group, effect in model.keep.items():
        found[f"ce_{group.replace(':', '_')}"] = effect.ce.value
    return found


def _evaluations(data: RunData) -> Row:
    """Return the overall primary measures of evaluations by name for trained SAEs."""
    found: Row = {}
    for score in data.scores:
        whole = score.seed is None and not score.task and not score.group
        if whole and score.primary and score.condition == TRAINED:
            name = f"{score.evaluation}.{score.measure}"
            found |= with_ends(name, score.interval)
            found[f"{name}_floor"] = number_or_none(score.floor)
    return found


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
