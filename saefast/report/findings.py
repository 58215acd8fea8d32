"""What the numbers of a run say, in words, also where it is not what the papers found."""

from collections.abc import Callable, Iterator
from math import exp
from typing import Any, NamedTuple

import numpy as np

from saefast.report.figures.figure import percent
from saefast.report.figures.groups import group_value
from saefast.report.figures.runs import pair_shares
from saefast.report.run_data import RunData

AGREES, DISAGREES, MIXED = "as published", "not as published", "in part as published"

_NULLS = {
    "haar": "random planes",
    "covariance": "directions with the data's covariance",
    "subset": "as many random features of the same SAEs",
    "initial": "the same latents before training",
}


class Finding(NamedTuple):
    """One sentence or two."""

    topic: str
    text: str
    verdict: str = ""
    """how it compares with what papers report, empty where they report nothing"""


def findings(data: RunData) -> list[Finding]:
    """All that the files allow, the most important first."""
    found: list[Finding] = []
    for find in _ALL:
        found += find(data)
    return found


def _stable_share(data: RunData) -> Iterator[Finding]:
    if not data.stability:
        return
    told = data.stability
    alive = sum(each["alive"] for each in told["seeds"])
    if not alive:
        return
    stable, unstable = (
        sum(each[name] for each in told["seeds"]) / alive for name in ("stable", "unstable")
    )
    others = len(told["seeds"]) - 1
    text = (
        f"{percent(stable)} of the features are stable (in at least {percent(told['stable_cut'])} "
        f"of the other SAEs), {percent(unstable)} unstable (in at most "
        f"{percent(told['unstable_cut'])}); the mean score is {told['mean']:.2f}, that of random "
        f"directions {np.mean(told['chance']):.2g}."
    )
    if others < 5:
        text += (
            f" With {others} other SAE{'s' if others > 1 else ''} a score is coarse: one feature's "
            f"95 % interval after no match still reaches {_upper_of_none(data):.2f}."
        )
    yield Finding("Stability", text)


def _upper_of_none(data: RunData) -> float:
    high = data.alive("high")[data.alive("score") == 0]
    return float(high.max()) if len(high) else float(data.alive("high").min())


def _pairs(data: RunData) -> Iterator[Finding]:
    shares = pair_shares(data, 0.7)
    if not shares:
        return
    ends = [percent(share) for share in (min(shares.values()), max(shares.values()))]
    between = " to ".join(dict.fromkeys(ends))
    yield Finding(
        "Pairs",
        f"Two SAEs that differ in the seed alone share {between} of their features (nearest "
        "decoder row of cosine 0.7 or more). Published values run from 0.3 to 0.8: more with fewer "
        "latents and longer training.",
    )


def _asymmetry(data: RunData) -> Iterator[Finding]:
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
    yield Finding(
        "Worth",
        f"On {where} the whole SAE explains {full:.3f} of the variance, its stable features alone "
        f"{stable:.3f}, its unstable features alone {unstable:.3f}.",
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


def _language_model(data: RunData) -> Iterator[Finding]:
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


def _frequency(data: RunData) -> Iterator[Finding]:
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


def _surface(data: RunData) -> Iterator[Finding]:
    medians = _medians(data, "token_auroc")
    if medians is None:
        return
    stable, unstable = medians
    yield Finding(
        "Surface form",
        f"One token foretells a stable feature with an AUROC of {stable:.2f} in the median, an "
        f"unstable one with {unstable:.2f}.",
        AGREES if unstable > stable else DISAGREES,
    )


def _medians(data: RunData, name: str) -> tuple[float, float] | None:
    if name not in data.features or "group" not in data.features:
        return None
    values, group = data.alive(name), data.alive("group")
    found = [values[(group == which) & np.isfinite(values)] for which in ("stable", "unstable")]
    if not all(len(each) for each in found):
        return None
    return float(np.median(found[0])), float(np.median(found[1]))


def _planes(data: RunData) -> Iterator[Finding]:
    for group in ("unstable", "stable"):
        tests = [
            row
            for row in data.subspaces["nulls"]
            if row["group"] == group and row["statistic"] == "overlap"
        ]
        if not tests:
            continue
        value = np.mean([row["value"] for row in tests])
        rank = np.mean([row["rank"] for row in data.subspaces["pairs"] if row["group"] == group])
        parts, above = [], {}
        for null, words in _NULLS.items():
            of = [row for row in tests if row["null"] == null]
            if of:
                mean = float(np.mean([row["mean"] for row in of]))
                parts.append(f"{words} {mean:.2f}")
                above[null] = all(
                    row["value"] > (row["mean"] if row["high"] is None else row["high"])
                    for row in of
                )
        left = [_NULLS[null] for null, yes in above.items() if not yes]
        text = (
            f"The planes of {rank:.0f} dimensions that the {group} features of two SAEs fill "
            f"overlap by {value:.2f} (1: the same plane); by chance: {', '.join(parts)}."
        )
        if left:
            text += f" That is not beyond {' or '.join(left)}."
        verdict = ""
        if group == "unstable":
            verdict = MIXED if left == [_NULLS["subset"]] else DISAGREES if left else AGREES
        yield Finding("Planes", text, verdict)


def _contributions(data: RunData) -> Iterator[Finding]:
    parts = []
    for group in ("stable", "unstable"):
        rows = [row for row in data.contributions if row["group"] == group]
        if rows:
            value, chance = (np.mean([row[name] for row in rows]) for name in ("r2", "r2_null"))
            parts.append(f"of {group} features {value:.2f} (as many random ones {chance:.2f})")
    if parts:
        yield Finding(
            "Same work",
            "What a group adds to a token in one SAE and in another has a squared correlation, "
            f"{', '.join(parts)}.",
        )


def _pooling(data: RunData) -> Iterator[Finding]:
    methods = {row["method"]: row for row in data.pooling.get("methods", [])}
    if "pooled" not in methods:
        return
    lost = [name for name, beaten in data.pooling["beaten"].items() if not beaten]
    own = methods["pooled"]
    parts = [
        f"{name} {row['equal_match_share']:.2f} and {row['equal_explained_variance']:.3f} "
        f"({row['tokens']:,} rows of training)"
        for name, row in methods.items()
    ]
    head = (
        f"Pooling does not beat {' and '.join(lost)}." if lost else "Pooling beats every control."
    )
    yield Finding(
        "Pooling",
        f"{head} Share of features with a match in the other SAE, and explained variance, at "
        f"{own['equal_alive']:.0f} features alive: {'; '.join(parts)}.",
        DISAGREES if lost else AGREES,
    )


def _dead(data: RunData) -> Iterator[Finding]:
    seeds = data.stability.get("seeds", [])
    dead = [each["dead"] for each in seeds]
    if sum(dead):
        total = sum(each["dead"] + each["alive"] for each in seeds)
        yield Finding(
            "Dead features",
            f"{percent(sum(dead) / total)} of all features never fire"
            + (" often enough" if data.stability.get("least_rate") else "")
            + f" ({min(dead)} to {max(dead)} of each SAE); they count nowhere.",
        )
    if data.evaluation and not data.evaluation["held_out"]:
        yield Finding(
            "Caution",
            "No rows were held out: what is said of explained variance holds for rows that the "
            "SAEs were trained on.",
        )


def _rate(share: float) -> str:
    return f"{100 * share:.2g} %"


_ALL: tuple[Callable[[RunData], Iterator[Finding]], ...] = (
    _stable_share,
    _pairs,
    _asymmetry,
    _language_model,
    _frequency,
    _surface,
    _planes,
    _contributions,
    _pooling,
    _dead,
)
