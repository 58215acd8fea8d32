"""Findings on what comes back in other seeds: features, planes, contributions, pools."""

from collections.abc import Iterator

import numpy as np

from saefast.report.findings.finding import AGREES, DISAGREES, MIXED, Finding
from saefast.report.run_data import RunData
from saefast.report.summary import pair_shares, percent

_NULLS = {
    "haar": "random planes",
    "covariance": "directions with the data's covariance",
    "subset": "as many random features of the same SAEs",
    "initial": "the same latents before training",
}


def stable_share(data: RunData) -> Iterator[Finding]:
    """Find how many features are stable, unstable and neither."""
    if not data.stability:
        return
    told = data.stability
    alive = sum(each.alive for each in told.seeds)
    if not alive:
        return
    stable = sum(each.stable for each in told.seeds) / alive
    unstable = sum(each.unstable for each in told.seeds) / alive
    others = len(told.seeds) - 1
    text = (
        f"{percent(stable)} of the features are stable (in at least {percent(told.stable_cut)} "
        f"of the other SAEs), {percent(unstable)} unstable (in at most "
        f"{percent(told.unstable_cut)}); the mean score is {told.mean:.2f}, that of random "
        f"directions {np.mean(told.chance):.2g}."
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


def pairs(data: RunData) -> Iterator[Finding]:
    """Find what two SAEs share."""
    shares, both = (pair_shares(data, 0.7, side) for side in ("decoder", "both"))
    if not shares:
        return
    between = _between(list(shares.values()))
    beside = ""
    if both:
        beside = f"; {_between(list(both.values()))} if encoder rows must match as well"
    yield Finding(
        "Pairs",
        f"Two SAEs that differ in the seed alone share {between} of their features (nearest "
        f"decoder row of cosine 0.7 or more{beside}). Published values run from 0.3 to 0.8: more "
        "with fewer latents and longer training.",
    )


def _between(shares: list[float]) -> str:
    ends = [percent(share) for share in (min(shares), max(shares))]
    return " to ".join(dict.fromkeys(ends))


def planes(data: RunData) -> Iterator[Finding]:
    """Find whether the planes of groups of features come back."""
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


def contributions(data: RunData) -> Iterator[Finding]:
    """Find whether groups add the same to tokens."""
    parts = []
    for group in ("stable", "unstable"):
        rows = [row for row in data.contributions if row["group"] == group]
        if rows:
            value, chance = (np.mean([row[name] for row in rows]) for name in ("r2", "r2_null"))
            parts.append(f"of {group} features {value:.2f} (random ones as active {chance:.2f})")
    if parts:
        yield Finding(
            "Same work",
            "What a group adds to a token in one SAE and in another has a squared correlation, "
            f"{', '.join(parts)}.",
        )


def pooling(data: RunData) -> Iterator[Finding]:
    """Find whether pooling beats its controls."""
    study = data.pooling
    if study is None or not study.methods or study.beaten is None:
        return
    methods = {row.method: row for row in study.methods}
    lost = [name for name, beaten in study.beaten.items() if not beaten]
    own = methods["pooled"]
    parts = [
        f"{name} {row.equal_match_share:.3f}, {row.equal_pw_mcc:.3f} and "
        f"{row.equal_explained_variance:.3f} ({row.tokens:,} rows of training)"
        for name, row in methods.items()
    ]
    head = f"Pooling does not beat {' or '.join(lost)}." if lost else "Pooling beats every control."
    yield Finding(
        "Pooling",
        f"{head} Share of features with a match in the other SAE, mean cosine of the best pairs "
        f"(PW-MCC), and explained variance, at {own.equal_alive:.0f} features alive: "
        f"{'; '.join(parts)}. To beat is to be better in one and worse in none, by more than "
        f"{study.margin:g}.",
        DISAGREES if lost else AGREES,
    )


def dead(data: RunData) -> Iterator[Finding]:
    """Find how many features are dead, and whether rows were held out."""
    told = data.stability
    dead = [each.dead for each in told.seeds] if told else []
    if told and sum(dead):
        total = sum(each.dead + each.alive for each in told.seeds)
        yield Finding(
            "Dead features",
            f"{percent(sum(dead) / total)} of all features never fire"
            + (" often enough" if told.least_rate else "")
            + f" ({min(dead)} to {max(dead)} of each SAE); they count nowhere.",
        )
    if data.evaluation and not data.evaluation.held_out:
        yield Finding(
            "Caution",
            "No rows were held out: what is said of explained variance holds for rows that the "
            "SAEs were trained on.",
        )
