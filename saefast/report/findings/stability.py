"""Findings on reproducibility across seeds: features, subspaces, contributions, pooling."""

from collections.abc import Iterator

import numpy as np

from saefast.report.findings.finding import AGREES, DISAGREES, MIXED, Finding
from saefast.report.run_data import RunData
from saefast.report.summary import pair_shares, percent

_NULLS = {
    "haar": "random subspaces",
    "covariance": "directions with the data's covariance",
    "subset": "as many random features of the same SAEs",
    "initial": "the same latents before training",
}


def stable_share(data: RunData) -> Iterator[Finding]:
    """Report how many features are stable, unstable and neither."""
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
            f" With {others} other SAE{'s' if others > 1 else ''} a score is coarse: the 95 % "
            f"interval of a feature without any match still reaches {_upper_of_none(data):.2f}."
        )
    yield Finding("Stability", text)


def _upper_of_none(data: RunData) -> float:
    high = data.alive("high")[data.alive("score") == 0]
    return float(high.max()) if len(high) else float(data.alive("high").min())


def pairs(data: RunData) -> Iterator[Finding]:
    """Report the share of features that two SAEs share."""
    shares, both = (pair_shares(data, 0.7, side) for side in ("decoder", "both"))
    if not shares:
        return
    between = _between(list(shares.values()))
    beside = ""
    if both:
        beside = f"; {_between(list(both.values()))} if encoder rows must match as well"
    yield Finding(
        "Pairs",
        f"Two SAEs that differ only in the seed share {between} of their features (nearest "
        f"decoder row with a cosine of at least 0.7{beside}). Published values range from 0.3 to "
        "0.8: higher with fewer latents and longer training.",
    )


def _between(shares: list[float]) -> str:
    ends = [percent(share) for share in (min(shares), max(shares))]
    return " to ".join(dict.fromkeys(ends))


def planes(data: RunData) -> Iterator[Finding]:
    """Report whether the subspaces of groups of features recur."""
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
            f"The principal subspaces of {rank:.0f} dimensions of the {group} features of two SAEs "
            f"overlap by {value:.2f} (1: the same subspace); by chance: {', '.join(parts)}."
        )
        if left:
            text += f" This is not beyond {' or '.join(left)}."
        verdict = ""
        if group == "unstable":
            verdict = MIXED if left == [_NULLS["subset"]] else DISAGREES if left else AGREES
        yield Finding("Subspaces", text, verdict)


def contributions(data: RunData) -> Iterator[Finding]:
    """Report whether groups contribute the same to tokens."""
    parts = []
    for group in ("stable", "unstable"):
        rows = [row for row in data.contributions if row["group"] == group]
        if rows:
            value, chance = (np.mean([row[name] for row in rows]) for name in ("r2", "r2_null"))
            parts.append(
                f"for {group} features {value:.2f} (equally active random ones {chance:.2f})"
            )
    if parts:
        yield Finding(
            "Contributions",
            "The squared correlation of a group's contributions to tokens between two SAEs is "
            f"{', '.join(parts)}.",
        )


def pooling(data: RunData) -> Iterator[Finding]:
    """Report whether pooling beats its controls."""
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
        f"{'; '.join(parts)}. A method beats another if it is better in one of these and worse in "
        f"none, by more than {study.margin:g}.",
        DISAGREES if lost else AGREES,
    )


def dead(data: RunData) -> Iterator[Finding]:
    """Report how many features are dead, and whether rows were held out."""
    told = data.stability
    dead = [each.dead for each in told.seeds] if told else []
    if told and sum(dead):
        total = sum(each.dead + each.alive for each in told.seeds)
        yield Finding(
            "Dead features",
            f"{percent(sum(dead) / total)} of all features never fire"
            + (" often enough" if told.least_rate else "")
            + f" ({min(dead)} to {max(dead)} of each SAE); they are not counted.",
        )
    if data.evaluation and not data.evaluation.held_out:
        yield Finding(
            "Caution",
            "No rows were held out: statements on explained variance hold for rows that the SAEs "
            "were trained on.",
        )
