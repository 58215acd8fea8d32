"""Findings on what stable and unstable features are worth, and how often they fire."""

from collections.abc import Iterator
from math import exp
from typing import Any

import numpy as np

from saefast.report.findings.finding import AGREES, DISAGREES, Finding
from saefast.report.run_data import RunData
from saefast.report.summary import group_value

_CLEAR = 0.02
"""Medians of AUROC that differ by less are as good as equal"""


def asymmetry(data: RunData) -> Iterator[Finding]:
    """Explained variance with groups alone, beside random features."""
    if not data.evaluation:
        return
    full = data.mean_over_seeds(lambda each: float(each["explained_variance"]))
    stable, _ = group_value(data, "stable", "", "keep")
    unstable, _ = group_value(data, "unstable", "", "keep")
    where = "held-out rows" if data.evaluation["held_out"] else "the rows it was trained on"
    if stable is None or unstable is None:
        absent = "stable" if stable is None else "unstable"
        yield Finding(
            "Worth",
            f"The whole SAE explains {full:.3f} of the variance on {where}. No feature is "
            f"{absent}, so the groups cannot be compared.",
        )
        return
    sizes = {
        group: data.mean_over_seeds(
            lambda each, group=group: next(  # type: ignore[misc]
                line["features"]
                for line in each["groups"]
                if (line["group"], line["control"]) == (group, "")
            )
        )
        for group in ("stable", "unstable")
    }
    yield Finding(
        "Worth",
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
    """The cross entropy of the next token with groups alone."""
    patched = data.evaluation.get("language_model")
    if not patched:
        return
    sizes = {
        line["group"]: line["features"]
        for each in data.evaluation["seeds"]
        for line in each["groups"]
        if each["seed"] == patched["seed"] and line["control"] == ""
    }

    def ce(effect: dict[str, Any]) -> float:
        return float(effect["ce"]["value"])

    clean, keep = ce(patched["clean"]), patched["keep"]
    if not all(sizes.values()):
        yield Finding(
            "Language model",
            f"The next token costs the model {clean:.2f} nats, {ce(patched['full']):.2f} with the "
            f"reconstruction; {ce(patched['mean']):.2f} with the mean activation, "
            f"{ce(patched['zero']):.2f} with zeros. Measured on {patched['predictions']:,} tokens.",
        )
        return
    stable, unstable = ce(keep["stable"]), ce(keep["unstable"])
    random = keep.get("unstable:mass")
    beside = f" (random features as active as the unstable: {ce(random):.2f})" if random else ""
    yield Finding(
        "Language model",
        f"The next token costs the model {clean:.2f} nats, {ce(patched['full']):.2f} with the "
        f"reconstruction, {stable:.2f} from stable features alone, {unstable:.2f} from unstable "
        f"ones alone{beside}; {ce(patched['mean']):.2f} with the mean activation, "
        f"{ce(patched['zero']):.2f} with zeros. Measured on {patched['predictions']:,} tokens.",
        AGREES if stable < unstable else DISAGREES,
    )


def frequency(data: RunData) -> Iterator[Finding]:
    """How often unstable features fire, and what they are worth for that."""
    medians = _medians(data, "firing_rate")
    if medians is None:
        return
    stable, unstable = medians
    word = "more rarely" if unstable < stable else "more often"
    yield Finding(
        "Frequency",
        f"Unstable features fire {word} than stable ones: in the median on {_rate(unstable)} of "
        f"the rows, against {_rate(stable)}. (Papers disagree: unstable ones are called rare, but "
        "unshared ones of one study fired more often.)",
    )
    regression = data.evaluation.get("regression", {}) if data.evaluation else {}
    if "coefficient" not in regression:
        return
    value, error = (regression[name]["group"] for name in ("coefficient", "standard_error"))
    times = [exp(value + 1.96 * side * error) for side in (-1, 0, 1)]
    less, more = times[2] < 1, times[0] > 1
    said = "worth less" if less else "worth more" if more else "worth as much, as far as is known"
    yield Finding(
        "At equal frequency",
        f"Among features that fire as often and as strongly, an unstable one is {said}: its effect "
        f"on the error is {times[1]:.2f} times that of another (95 % interval {times[0]:.2f} to "
        f"{times[2]:.2f}; {regression['features']:,} features).",
        AGREES if less else DISAGREES if more else "",
    )


def surface_form(data: RunData) -> Iterator[Finding]:
    """How far single tokens foretell features."""
    medians = _medians(data, "token_auroc")
    if medians is None:
        return
    stable, unstable = medians
    yield Finding(
        "Surface form",
        f"One token foretells a stable feature with an AUROC of {stable:.2f} in the median, an "
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
