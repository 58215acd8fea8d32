"""Findings on the contribution of stable and unstable features, and their frequency."""

from collections.abc import Iterator
from math import exp

import numpy as np

from saefast.report.findings.finding import AGREES, DISAGREES, Finding
from saefast.report.run_data import RunData
from saefast.report.summary import explained_variance, group_lines, group_value
from saefast.run_records import as_active

_CLEAR = 0.02
"""Difference of median AUROCs below which they count as equal."""


def asymmetry(data: RunData) -> Iterator[Finding]:
    """Report the explained variance with groups only, beside random features."""
    if not data.evaluation:
        return
    full = explained_variance(data.evaluation)
    stable, _ = group_value(data, "stable", "", "keep")
    unstable, _ = group_value(data, "unstable", "", "keep")
    where = "held-out rows" if data.evaluation.held_out else "the rows it was trained on"
    if stable is None or unstable is None:
        absent = "stable" if stable is None else "unstable"
        yield Finding(
            "Explained variance",
            f"The whole SAE explains {full:.3f} of the variance on {where}. No feature is "
            f"{absent}, so the groups cannot be compared.",
        )
        return
    lines = [line for line in group_lines(data) if line.control == ""]
    sizes = {
        group: np.mean([line.features for line in lines if line.group == group])
        for group in ("stable", "unstable")
    }
    yield Finding(
        "Explained variance",
        f"On {where} the whole SAE explains {full:.3f} of the variance, its stable features alone "
        f"{stable:.3f} ({sizes['stable']:.0f} of them), its unstable features alone "
        f"{unstable:.3f} ({sizes['unstable']:.0f}).",
        AGREES if stable > unstable else DISAGREES,
    )
    for group, own in (("stable", stable), ("unstable", unstable)):
        mean, deviation = group_value(data, group, "mass", "keep")
        if mean is None:
            continue
        gap = own - mean
        word = "more than" if gap > 2 * deviation else "less than"
        if abs(gap) <= 2 * deviation:
            word = "no different from"
        yield Finding(
            "Controls",
            f"{group.capitalize()} features alone explain {own:.3f}, {word} random features with "
            f"the same sum of activations ({mean:.3f} ± {deviation:.3f}).",
            _as_said(word, "more than" if group == "stable" else "less than"),
        )


def _as_said(word: str, claimed: str) -> str:
    return AGREES if word == claimed else DISAGREES


def language_model(data: RunData) -> Iterator[Finding]:
    """Report the cross entropy of the next token with groups only."""
    if data.evaluation is None or data.evaluation.language_model is None:
        return
    patched = data.evaluation.language_model
    sizes = {
        line.group: line.features
        for each in data.evaluation.seeds
        for line in each.groups
        if each.seed == patched.seed and line.control == ""
    }
    effects = (patched.clean, patched.full, patched.mean, patched.zero)
    clean, full, mean, zero = (effect.ce.value for effect in effects)
    keep = patched.keep
    if not all(sizes.values()):
        yield Finding(
            "Language model",
            f"The next token costs the model {clean:.2f} nats, {full:.2f} with the "
            f"reconstruction; {mean:.2f} with the mean activation, "
            f"{zero:.2f} with zeros. Measured on {patched.predictions:,} tokens.",
        )
        return
    stable, unstable = keep["stable"].ce.value, keep["unstable"].ce.value
    random = keep.get(as_active("unstable"))
    beside = ""
    if random:
        beside = f" (random features as active as the unstable: {random.ce.value:.2f})"
    yield Finding(
        "Language model",
        f"The next token costs the model {clean:.2f} nats, {full:.2f} with the "
        f"reconstruction, {stable:.2f} from stable features alone, {unstable:.2f} from unstable "
        f"ones alone{beside}; {mean:.2f} with the mean activation, "
        f"{zero:.2f} with zeros. Measured on {patched.predictions:,} tokens.",
        AGREES if stable < unstable else DISAGREES,
    )


def frequency(data: RunData) -> Iterator[Finding]:
    """Report how often unstable features fire, and their effect at equal frequency."""
    medians = _medians(data, "firing_rate")
    if medians is None:
        return
    stable, unstable = medians
    word = "more rarely" if unstable < stable else "more often"
    yield Finding(
        "Frequency",
        f"Unstable features fire {word} than stable ones: the median firing rate is "
        f"{_rate(unstable)} of the rows, against {_rate(stable)}. (Papers disagree: "
        "unstable features are called rare, but in one study unshared ones fired more often.)",
    )
    regression = data.evaluation and data.evaluation.regression
    if not regression or regression.coefficient is None or regression.standard_error is None:
        return
    value, error = regression.coefficient["group"], regression.standard_error["group"]
    times = [exp(value + 1.96 * side * error) for side in (-1, 0, 1)]
    less, more = times[2] < 1, times[0] > 1
    said = "less" if less else "more" if more else "as much, as far as is known"
    yield Finding(
        "At equal frequency",
        f"Among features that fire as often and as strongly, an unstable one contributes {said}: "
        f"its effect on the error is {times[1]:.2f} times that of another (95 % interval "
        f"{times[0]:.2f} to {times[2]:.2f}; {regression.features:,} features).",
        AGREES if less else DISAGREES if more else "",
    )


def surface_form(data: RunData) -> Iterator[Finding]:
    """Report how well single tokens predict features."""
    medians = _medians(data, "token_auroc")
    if medians is None:
        return
    stable, unstable = medians
    yield Finding(
        "Surface form",
        f"The best single token predicts a stable feature with a median AUROC of {stable:.2f}, an "
        f"unstable one with {unstable:.2f}.",
        AGREES if unstable > stable + _CLEAR else DISAGREES if unstable < stable - _CLEAR else "",
    )


def _medians(data: RunData, name: str) -> tuple[float, float] | None:
    if name not in data.features or "group" not in data.features:
        return None
    values, group = data.alive(name), data.alive("group")
    found = [values[(group == which) & np.isfinite(values)] for which in ("stable", "unstable")]
    if not all(len(each) for each in found):
        return None
    return float(np.median(found[0])), float(np.median(found[1]))


def _rate(share: float) -> str:
    return f"{100 * share:.2g} %"
