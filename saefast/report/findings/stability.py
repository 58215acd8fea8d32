"""Findings on reproducibility across seeds: features, subspaces, contributions, pooling."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saefast.report.findings.finding import (
    AGREES,
    DISAGREES,
    FAILS,
    HOLDS,
    MIXED,
    UNCLEAR,
    Finding,
    in_all,
)
from saefast.report.run_data import RunData, TableRows
from saefast.report.summary import NULLS, pair_shares, percent, small

_NULLS = {
    "haar": "random subspaces",
    "covariance": "directions with the data's covariance",
    "subset": "as many random features of the same SAEs",
    "initial": "the same latents before training",
}
_SIGNIFICANT = 0.05


def stable_share(data: RunData) -> Iterator[Finding]:
    """Report how many features are stable, unstable and neither."""
    if not data.stability:
        return
    record = data.stability
    alive = sum(each.alive for each in record.seeds)
    if not alive:
        return
    stable = sum(each.stable for each in record.seeds) / alive
    unstable = sum(each.unstable for each in record.seeds) / alive
    others = len(record.seeds) - 1
    chance = small(float(np.mean(record.chance)))
    text = (
        f"{percent(stable)} of the features are stable (in at least {percent(record.stable_cut)} "
        f"of the other SAEs), {percent(unstable)} unstable (in at most "
        f"{percent(record.unstable_cut)}); the mean score is {record.mean:.2f}, for random "
        f"directions {chance}."
    )
    if others < 5:
        text += (
            f" With {others} other SAE{'s' if others > 1 else ''} a score is coarse: the 95 % "
            f"interval of a feature without any match still reaches {_upper_of_none(data):.2f}."
        )
    yield Finding(
        "Stability",
        text,
        claim="Features recur in other SAEs more often than random directions",
        holds=in_all(_recur_beyond_chance(data)),
        evidence=f"mean stability score {record.mean:.2f}, random directions {chance}",
        figure="stability-histogram",
    )


def _recur_beyond_chance(data: RunData) -> list[bool]:
    """Return for each SAE whether its mean score exceeds the score of random directions."""
    assert data.stability
    chance = float(np.mean(data.stability.chance))
    seed, score = data.alive("seed"), data.alive("score")
    found = []
    for own in data.seeds:
        scores = score[seed == own]
        if len(scores):
            tests = len(scores) * (len(data.seeds) - 1)
            found.append(scores.mean() > chance + 2 * np.sqrt(chance * (1 - chance) / tests))
    return [bool(each) for each in found]


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
    least = f"{'a' if data.similarity == 'cosine' else 'an'} {data.similarity} of at least 0.7"
    yield Finding(
        "Pairs",
        f"Two SAEs that differ only in the seed share {between} of their features (nearest "
        f"decoder row with {least}{beside}). Published values, by decoder and encoder rows, range "
        "from 0.3 to 0.8: higher with fewer latents and longer training.",
        claim="Two SAEs share more than half of their features",
        holds=in_all(share > 0.5 for share in shares.values()),
        evidence=f"{between} with {least}",
        figure="shared-curves",
    )


def _between(shares: list[float]) -> str:
    ends = [percent(share) for share in (min(shares), max(shares))]
    return " to ".join(dict.fromkeys(ends))


def subspaces(data: RunData) -> Iterator[Finding]:
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
        parts, brief = [], []
        above: dict[str, str] = {}
        for null, words in _NULLS.items():
            of = [row for row in tests if row["null"] == null]
            if of:
                mean = float(np.mean([row["mean"] for row in of]))
                parts.append(f"{words} {mean:.2f}")
                brief.append(f"{NULLS[null][0]} {mean:.2f}")
                above[null] = in_all(map(_is_beyond, of))
        left = [_NULLS[null] for null, held in above.items() if held != HOLDS]
        text = (
            f"The principal subspaces of {rank:.0f} dimensions of the {group} features of two SAEs "
            f"overlap by {value:.2f} (1: the same subspace); by chance: {', '.join(parts)}."
        )
        if left:
            text += f" This is not beyond {' or '.join(left)}."
        verdict = _beyond_nulls(above) if group == "unstable" else ""
        yield Finding(
            "Subspaces",
            text,
            verdict,
            claim=f"The subspace of {group} features recurs beyond every null",
            holds=in_all(_beyond_every_null(tests)),
            evidence=f"overlap {value:.2f}; {', '.join(brief)}",
            figure=f"overlap-{group}",
        )


def _beyond_every_null(tests: TableRows) -> list[bool]:
    """Return for each pair of SAEs whether their overlap lies beyond the range of every null."""
    pairs: dict[tuple[int, int], list[bool]] = {}
    for row in tests:
        pairs.setdefault((row["a"], row["b"]), []).append(_is_beyond(row))
    return [all(each) for each in pairs.values()]


def _is_beyond(test: dict[str, Any]) -> bool:
    """Return whether a value exceeds the band of its null, or the mean where there is no band."""
    high = test["mean"] if test["high"] is None else test["high"]
    return bool(test["value"] > high)


def _beyond_nulls(above: Mapping[str, str]) -> str:
    """Return the verdict on overlaps that hold, fail or differ between pairs, by null."""
    missed = [null for null, held in above.items() if held == FAILS]
    if set(missed) - {"subset"}:
        return DISAGREES
    if UNCLEAR in above.values():
        return UNCLEAR
    return MIXED if missed else AGREES


def contributions(data: RunData) -> Iterator[Finding]:
    """Report whether groups contribute the same to tokens."""
    parts, decided = {}, {}
    for group in ("stable", "unstable"):
        rows = [row for row in data.contributions if row["group"] == group]
        if rows:
            value, chance = (np.mean([row[name] for row in rows]) for name in ("r2", "r2_null"))
            parts[group] = f"{value:.2f} (equally active random ones {chance:.2f})"
            decided[group] = _beyond_random(rows)
    if not parts:
        return
    group = "unstable" if "unstable" in parts else "stable"
    words_by_group = ", ".join(f"for {name} features {words}" for name, words in parts.items())
    yield Finding(
        "Contributions",
        f"The squared correlation of a group's contributions to tokens between two SAEs is "
        f"{words_by_group}.",
        claim=f"The {group} features of two SAEs contribute the same to tokens, more than random "
        "ones",
        holds=decided[group],
        evidence=f"squared correlation {parts[group]}",
        figure="contributions",
    )


def _beyond_random(rows: TableRows) -> str:
    """Return whether a group's contributions agree more than random features' in every pair."""
    significant = [row["r2_p"] is not None and row["r2_p"] <= _SIGNIFICANT for row in rows]
    verdict = in_all(significant)
    # With few draws no p-value can be small.
    above = any(row["r2"] > row["r2_null"] for row in rows)
    return UNCLEAR if verdict == FAILS and above else verdict


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
        claim="Pooling beats every control",
        holds=FAILS if lost else HOLDS,
        evidence="features with a match: "
        + ", ".join(f"{name} {row.equal_match_share:.3f}" for name, row in methods.items()),
        figure="pooling-frontier",
    )


def dead(data: RunData) -> Iterator[Finding]:
    """Report how many features are dead, and whether rows were held out."""
    record = data.stability
    dead = [each.dead for each in record.seeds] if record else []
    if record and sum(dead):
        total = sum(each.dead + each.alive for each in record.seeds)
        yield Finding(
            "Dead features",
            f"{percent(sum(dead) / total)} of all features never fire"
            + (" often enough" if record.least_rate else "")
            + f" ({min(dead)} to {max(dead)} of each SAE); they are not counted.",
        )
    if data.evaluation and not data.evaluation.held_out:
        yield Finding(
            "Caution",
            "No rows were held out: statements on explained variance hold for rows that the SAEs "
            "were trained on.",
        )
