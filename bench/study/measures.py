"""Measures of a cell of the study, each with a 95 % interval.

Values of SAEs and differences within an SAE have Student's interval over the SAEs. Values of pairs
of SAEs have the jackknife's over the SAEs, since pairs with a common SAE depend on each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.explaining.estimates import equal_rate_difference
from saefast.evaluation.intervals import (
    NOWHERE,
    Interval,
    interval_of_equal_items,
    student_interval,
)
from saefast.report.run_data import RunData
from saefast.report.summary import group_by_seed, pair_shares
from saefast.run_records import EstimateRecord, as_active

GROUPS = ("stable", "unstable")
NULLS = ("haar", "covariance", "subset", "initial")
"""Null models of overlaps of subspaces."""

_SHARED_AT = 0.7
_RATE_BINS = 10
_NORMAL = 1.959963984540054

Pairs = Mapping[tuple[int, int], float]


def measures(data: RunData) -> dict[str, Interval]:
    """Return all measures of a run, those that it does not allow left out.

    Args:
        data: files of the run.

    Returns:
        Intervals by name. `GROUP_lead` is the explained variance with a group of features alone,
        minus the value of random ones with equal activation mass; `GROUP_beyond_NULL` the overlap
        of the subspaces of a group, minus the overlap of a null.
    """
    parts: tuple[Callable[[RunData], Iterator[tuple[str, Interval]]], ...] = (
        _training,
        _stability,
        _pairs,
        _worth,
        _subspaces,
        _contributions,
        _frequency,
        _language_model,
    )
    found = {name: interval for part in parts for name, interval in part(data)}
    return {name: each for name, each in found.items() if not np.isnan(each.value)}


def jackknife_interval(pairs: Pairs) -> Interval:
    """Return the mean over all pairs of items, with the jackknife's interval over the items.

    Args:
        pairs: value of each pair (a, b) with a < b.
    """
    items = sorted({item for pair in pairs for item in pair})
    n = len(items)
    mean = float(np.mean(list(pairs.values()))) if pairs else float("nan")
    if n < 3:
        return NOWHERE._replace(value=mean)
    without = [
        float(np.mean([value for pair, value in pairs.items() if item not in pair]))
        for item in items
    ]
    return student_interval([n * mean - (n - 1) * each for each in without])


def _training(data: RunData) -> Iterator[tuple[str, Interval]]:
    last = {row["sae"]: row for row in data.metrics}.values()
    for name in ("l0", "dead_share"):
        yield name, student_interval([row[name] for row in last])


def _stability(data: RunData) -> Iterator[tuple[str, Interval]]:
    if data.stability is None:
        return
    seeds = [each for each in data.stability.seeds if each.alive]
    for group in GROUPS:
        yield f"{group}_share", _of_shares([getattr(e, group) / e.alive for e in seeds])
    yield "stability_null", NOWHERE._replace(value=float(np.mean(data.stability.chance)))


def _of_shares(shares: Sequence[float]) -> Interval:
    """Return the mean of shares and its interval, which is not empty even for equal shares."""
    interval = student_interval(shares)
    if interval.low == interval.high:
        return interval_of_equal_items(interval.value, len(shares), 0.0, 1.0)
    return interval


def _pairs(data: RunData) -> Iterator[tuple[str, Interval]]:
    for name, side in (("shared", "decoder"), ("shared_both", "both")):
        yield name, jackknife_interval(pair_shares(data, _SHARED_AT, side))
    for name, match in (("mmcs", "nearest"), ("pw_mcc", "one_to_one")):
        rows = [
            row
            for row in data.overlap
            if (row["name"], row["match"], row["of"], row["side"])
            == (name, match, "both", "decoder")
        ]
        yield name, jackknife_interval({(row["a"], row["b"]): row["value"] for row in rows})
        nulls = [row["null"] for row in rows if row["null"] is not None]
        yield f"{name}_null", NOWHERE._replace(value=float(np.mean(nulls)) if nulls else np.nan)


def _worth(data: RunData) -> Iterator[tuple[str, Interval]]:
    if data.evaluation is None:
        return
    seeds = data.evaluation.seeds
    yield "explained_variance", student_interval([each.explained_variance for each in seeds])
    for group in GROUPS:
        own, random = (group_by_seed(data, group, how, "keep") for how in ("", "mass"))
        yield f"{group}_keep", student_interval([each.mean for each in own.values()])
        yield f"{group}_keep_mass", student_interval([each.mean for each in random.values()])
        both = own.keys() & random.keys()
        yield f"{group}_lead", student_interval([own[s].mean - random[s].mean for s in both])
    fitted = data.evaluation.regression
    if fitted.coefficient is not None and fitted.standard_error is not None:
        value, error = fitted.coefficient["group"], fitted.standard_error["group"]
        low, middle, high = (exp(value + side * _NORMAL * error) for side in (-1, 0, 1))
        yield "unstable_effect", Interval(middle, low, high)


def _subspaces(data: RunData) -> Iterator[tuple[str, Interval]]:
    rows = [row for row in data.subspaces["nulls"] if row["statistic"] == "overlap"]
    for group in GROUPS:
        mine = [row for row in rows if row["group"] == group]
        overlaps = {(row["a"], row["b"]): row["value"] for row in mine}
        yield f"{group}_overlap", jackknife_interval(overlaps)
        for null in NULLS:
            chance = {(row["a"], row["b"]): row["mean"] for row in mine if row["null"] == null}
            beyond = {pair: overlaps[pair] - mean for pair, mean in chance.items()}
            yield f"{group}_overlap_{null}", jackknife_interval(chance)
            yield f"{group}_beyond_{null}", jackknife_interval(beyond)


def _contributions(data: RunData) -> Iterator[tuple[str, Interval]]:
    for group in GROUPS:
        rows = [row for row in data.contributions if row["group"] == group]
        own = {(row["a"], row["b"]): row["r2"] for row in rows}
        beyond = {(row["a"], row["b"]): row["r2"] - row["r2_null"] for row in rows}
        yield f"{group}_r2", jackknife_interval(own)
        yield f"{group}_r2_beyond_mass", jackknife_interval(beyond)


def _frequency(data: RunData) -> Iterator[tuple[str, Interval]]:
    """Compare firing rates, and how well the best token predicts features at equal rate."""
    if "group" not in data.features or "firing_rate" not in data.features:
        return
    seed, group, rate = (data.alive(name) for name in ("seed", "group", "firing_rate"))
    masks = [[(seed == own) & (group == name) for name in GROUPS] for own in data.seeds]
    masks = [each for each in masks if all(mask.any() for mask in each)]
    ratios = [np.log(np.median(rate[b]) / np.median(rate[a])) for a, b in masks]
    yield "unstable_rate", Interval(*(exp(value) for value in student_interval(ratios)))
    if "token_auroc" not in data.features:
        return
    auroc = data.alive("token_auroc")
    for place, name in enumerate(GROUPS):
        yield f"{name}_auroc", student_interval([np.nanmedian(auroc[e[place]]) for e in masks])
    differences = [at_equal_rate(auroc, rate, b, a) for a, b in masks]
    yield "unstable_auroc_lead", student_interval(differences)


def at_equal_rate(
    values: NDArray[Any], rate: NDArray[Any], a: NDArray[Any], b: NDArray[Any]
) -> float:
    """Return mean(values[a]) - mean(values[b]) within tenths of the firing rate of both groups.

    Args:
        values: [features] value of each feature.
        rate: [features] firing rate of each feature.
        a: [features] mask of one group.
        b: [features] mask of the other.
    """
    edges = np.quantile(rate[a | b], np.linspace(0, 1, _RATE_BINS + 1)[1:-1])
    bins = np.digitize(rate, edges)
    return equal_rate_difference(values[a], values[b], bins[a], bins[b]).value


def _language_model(data: RunData) -> Iterator[tuple[str, Interval]]:
    """Take cross entropies of one SAE, whose errors are those over contexts."""
    patched = data.evaluation.language_model if data.evaluation else None
    if patched is None:
        return
    effects = {"clean": patched.clean, "full": patched.full, "mean": patched.mean}
    for group in GROUPS:
        for name in (group, as_active(group)):
            if name in patched.keep:
                effects[name.replace(":", "_")] = patched.keep[name]
    for name, effect in effects.items():
        yield f"ce_{name}", _with_error(effect.ce)


def _with_error(estimate: EstimateRecord) -> Interval:
    half = _NORMAL * (estimate.error or 0.0)
    return Interval(estimate.value, estimate.value - half, estimate.value + half)


def rounded(found: Mapping[str, Interval]) -> dict[str, Sequence[float | None]]:
    """Return intervals as lists of value and ends, with None for unknown ends."""
    return {
        name: [None if np.isnan(each) else float(f"{each:.5g}") for each in interval]
        for name, interval in found.items()
    }
