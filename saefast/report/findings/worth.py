"""Findings on the contribution of stable and unstable features, and their frequency."""

from collections.abc import Iterator
from math import exp, hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.intervals import Interval, student_interval
from saefast.report.findings.finding import FAILS, HOLDS, Finding, by_interval, compared, in_all
from saefast.report.run_data import RunData
from saefast.report.summary import (
    Spread,
    explained_variance,
    group_by_seed,
    group_lines,
    group_value,
)
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
    own = {name: group_by_seed(data, name, "", "keep") for name in ("stable", "unstable")}
    lead = student_interval(
        [
            each.mean - own["unstable"][seed].mean
            for seed, each in own["stable"].items()
            if seed in own["unstable"]
        ]
    )
    holds = by_interval(lead.low, lead.high)
    yield Finding(
        "Explained variance",
        f"On {where} the whole SAE explains {full:.3f} of the variance, its stable features alone "
        f"{stable:.3f} ({sizes['stable']:.0f} of them), its unstable features alone "
        f"{unstable:.3f} ({sizes['unstable']:.0f}).",
        compared(holds),
        claim="Stable features explain more variance than unstable ones",
        holds=holds,
        evidence=f"{stable:.3f} against {unstable:.3f}; difference {_ends(lead)}",
        figure="keep-drop",
    )
    for group, claimed in (("stable", "more"), ("unstable", "less")):
        found = _beside_random(own[group], group_by_seed(data, group, "mass", "keep"), claimed)
        if found is None:
            continue
        word, holds = found
        value, _ = group_value(data, group, "", "keep")
        mean, deviation = group_value(data, group, "mass", "keep")
        numbers = f"({mean:.3f} ± {deviation:.3f})"
        yield Finding(
            "Controls",
            f"{group.capitalize()} features alone explain {value:.3f}, {word} random features with "
            f"the same activation mass {numbers}.",
            compared(holds),
            claim=f"{group.capitalize()} features explain {claimed} variance than random ones of "
            "equal activation mass",
            holds=holds,
            evidence=f"{value:.3f}, random {numbers[1:-1]}",
            figure="keep-drop",
        )


def _beside_random(
    own: dict[int, Spread], random: dict[int, Spread], claimed: str
) -> tuple[str, str] | None:
    """Compare groups with random features of the same SAEs.

    Args:
        own: explained variance of the group by SAE.
        random: explained variance of random features by SAE.
        claimed: "more" or "less": the claim about the group.

    Returns:
        The comparison in words, and whether the claim holds; None if there is nothing to compare.
    """
    pairs = [(own[seed].mean, random[seed]) for seed in own if seed in random]
    if not pairs:
        return None
    beyond = {
        "more": [value > drawn.high for value, drawn in pairs],
        "less": [value < drawn.low for value, drawn in pairs],
    }
    words = [f"{word} than" for word, each in beyond.items() if all(each)]
    if not words and not any(beyond["more"] + beyond["less"]):
        words = ["no different from"]
    return "".join(words) or "in some SAEs, but not in all, different from", in_all(beyond[claimed])


def _ends(interval: Interval) -> str:
    return f"{interval.value:+.3f} (95 % interval {interval.low:+.3f} to {interval.high:+.3f})"


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
    saved = unstable - stable
    half = 1.96 * hypot(*(keep[group].ce.error or 0.0 for group in ("stable", "unstable")))
    holds = by_interval(saved - half, saved + half)
    yield Finding(
        "Language model",
        f"The next token costs the model {clean:.2f} nats, {full:.2f} with the "
        f"reconstruction, {stable:.2f} from stable features alone, {unstable:.2f} from unstable "
        f"ones alone{beside}; {mean:.2f} with the mean activation, "
        f"{zero:.2f} with zeros. Measured on {patched.predictions:,} tokens.",
        compared(holds),
        claim="Stable features alone predict the next token better than unstable ones",
        holds=holds,
        evidence=f"{stable:.2f} against {unstable:.2f} nats; the model itself {clean:.2f}",
        figure="keep-drop-ce",
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
        claim="Unstable features fire more rarely than stable ones",
        holds=_rarer(data),
        evidence=f"median firing rate {_rate(unstable)} against {_rate(stable)}",
        figure="similarity-frequency",
    )
    regression = data.evaluation and data.evaluation.regression
    if not regression or regression.coefficient is None or regression.standard_error is None:
        return
    value, error = regression.coefficient["group"], regression.standard_error["group"]
    times = [exp(value + 1.96 * side * error) for side in (-1, 0, 1)]
    holds = by_interval(1 - times[2], 1 - times[0])
    comparison = {HOLDS: "less", FAILS: "more"}.get(holds, "as much, as far as is known")
    yield Finding(
        "At equal frequency",
        f"Among features that fire as often and as strongly, an unstable one contributes "
        f"{comparison}: its effect on the error is {times[1]:.2f} times the effect of another "
        f"(95 % interval {times[0]:.2f} to {times[2]:.2f}; {regression.features:,} features).",
        compared(holds),
        claim="At equal frequency and strength an unstable feature contributes less",
        holds=holds,
        evidence=f"{times[1]:.2f} times the effect (95 % interval {times[0]:.2f} to "
        f"{times[2]:.2f})",
        figure="effect-by-rate",
    )


def _rarer(data: RunData) -> str:
    """Return whether the median firing rate of unstable features is lower, over SAEs."""
    ratios = [
        np.log(stable / unstable)
        for stable, unstable in _medians_by_seed(data, "firing_rate")
        if stable > 0 and unstable > 0
    ]
    interval = student_interval(ratios)
    return by_interval(interval.low, interval.high)


def surface_form(data: RunData) -> Iterator[Finding]:
    """Report how well single tokens predict features."""
    medians = _medians(data, "token_auroc")
    if medians is None:
        return
    stable, unstable = medians
    lead = student_interval([rare - often for often, rare in _medians_by_seed(data, "token_auroc")])
    holds = by_interval(lead.low, lead.high, _CLEAR)
    yield Finding(
        "Surface form",
        f"The best single token predicts a stable feature with a median AUROC of {stable:.2f}, an "
        f"unstable one with {unstable:.2f}.",
        compared(holds),
        claim="Single tokens predict unstable features better than stable ones",
        holds=holds,
        evidence=f"median AUROC {unstable:.2f} against {stable:.2f}",
        figure="surface-form",
    )


def _medians(data: RunData, name: str) -> tuple[float, float] | None:
    """Return the medians of a column over stable and over unstable features of all SAEs."""
    if name not in data.features or "group" not in data.features:
        return None
    return _medians_of(data.alive(name), data.alive("group"))


def _medians_by_seed(data: RunData, name: str) -> list[tuple[float, float]]:
    """Return the medians of each SAE that has both stable and unstable features."""
    values, group, seed = (data.alive(column) for column in (name, "group", "seed"))
    found = [_medians_of(values[seed == own], group[seed == own]) for own in data.seeds]
    return [each for each in found if each is not None]


def _medians_of(values: NDArray[Any], group: NDArray[Any]) -> tuple[float, float] | None:
    found = [values[(group == which) & np.isfinite(values)] for which in ("stable", "unstable")]
    if not all(len(each) for each in found):
        return None
    return float(np.median(found[0])), float(np.median(found[1]))


def _rate(share: float) -> str:
    return f"{100 * share:.2g} %"
