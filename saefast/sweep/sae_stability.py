"""Stability of single SAEs in the table of a sweep, whose intervals are computed only once."""

import numpy as np

from saefast.evaluation.intervals import Interval, mean_interval, proportion_interval
from saefast.report.run_data import RunData
from saefast.sweep.folder import SweepFolder
from saefast.sweep.records import IntervalsRecord

Numbers = dict[str, float | None]


def stability_of_saes(folder: SweepFolder, name: str, data: RunData) -> list[Numbers]:
    """Return the shares and the mean score of each SAE, with intervals over its features.

    Intervals over many features take most of the time of a table, so they are kept in the folder
    of the cell: its worker computes them, not the driver of all cells.

    Args:
        folder: folder of the sweep.
        name: name of the cell.
        data: results of the cell.

    Returns:
        Values of each SAE by column; no SAEs if there are no scores.
    """
    if data.stability is None or "stability" not in data.stages:
        return []
    digest = data.stages["stability"].digest
    kept = folder.intervals(name)
    if kept is None or kept.digest != digest:
        if not data.features:
            return []
        saes = [_stability_of_sae(data, place) for place in range(len(data.seeds))]
        kept = IntervalsRecord(digest, saes)
        folder.write_intervals(name, kept)
    return list(kept.saes)


def _stability_of_sae(data: RunData, place: int) -> Numbers:
    assert data.stability is not None
    its = data.stability.seeds[place]
    mine = data.features["alive"] & (data.features["seed"] == its.seed)
    return {
        **with_ends("stable_share", proportion_interval(its.stable, its.alive)),
        **with_ends("unstable_share", proportion_interval(its.unstable, its.alive)),
        **with_ends("stability", mean_interval(data.features["score"][mine])),
        # A feature is found in the other SAEs, so their chances count and not its own SAE's.
        "stability_null": float(np.mean(np.delete(data.stability.chance, place))),
    }


def with_ends(name: str, interval: Interval) -> Numbers:
    """Return the columns of a value and the ends of its interval."""
    return {
        name: number_or_none(interval.value),
        f"{name}_low": number_or_none(interval.low),
        f"{name}_high": number_or_none(interval.high),
    }


def number_or_none(value: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if np.isnan(value) else value
