"""Figures of groups of features: contributions, subspaces, and pooling."""

import numpy as np

from saefast.report.chart import Chart
from saefast.report.figures.figure import Figure, mean_by, need
from saefast.report.run_data import RunData
from saefast.report.scale import Scale, covering
from saefast.report.summary import NULLS, explained_variance, group_lines, group_value, percent
from saefast.run_records import as_active

GROUPS = {"stable": "s0", "unstable": "s1"}
METHODS = {"pooled": "s0", "pruned": "s1", "scratch": "s3", "single": "s2"}
_BOTH_R2 = ("r2", "r2_null")
_NO_SUBSPACES = "subspaces (saefast subspace)"
_NO_EVALUATION = "an evaluation (saefast evaluate)"


def keep_drop(data: RunData) -> Figure:
    """Draw the explained variance with a group only, and without it."""
    full = explained_variance(need(data.evaluation, _NO_EVALUATION))
    chart = Chart(
        Scale(-0.6, 7.6),
        covering(
            [full, *(value for line in group_lines(data) for value in (line.keep, line.drop))]
        ),
        "features kept, or dropped",
        "explained variance",
        x_names=("keep", "size", "mass", "drop", "keep", "size", "mass", "drop"),
    )
    parts: list[str] = []
    for at, (group, colour) in enumerate(GROUPS.items()):
        for place, control in enumerate(("", "size", "mass")):
            mean, deviation = group_value(data, group, control, "keep")
            if mean is None:
                continue
            where = 4 * at + place
            words = f"random, of equal {control}" if control else f"only {group}"
            spread = f" ± {deviation:.3f}" if control else ""
            colour_of = "s2" if control else colour
            chart.bar(where - 0.4, where + 0.4, mean, colour_of, f"{words}: {mean:.3f}{spread}")
            if control:
                chart.whisker(where, mean - deviation, mean + deviation)
            if control == "mass":
                parts[-1] += f" (random of equal mass {mean:.3f})"
            elif not control:
                parts.append(f"{group} features {mean:.3f}")
        mean, _ = group_value(data, group, "", "drop")
        if mean is not None:
            chart.bar(4 * at + 2.6, 4 * at + 3.4, mean, "s4", f"without {group}: {mean:.3f}")
    need(parts, "stable or unstable features")
    chart.rule(y=full)
    chart.legend("stable", "s0")
    chart.legend("unstable", "s1")
    chart.legend("random", "s2")
    chart.legend("dropped", "s4")
    return Figure(
        "keep-drop",
        "Explained variance by group",
        "Variance explained on held-out rows with only the stable features (left) and only the "
        "unstable features (right), beside random features: as many (size), or with the same sum "
        "of activations (mass). Purple: all features except the group. The dashed line is the "
        f"whole SAE ({full:.3f}); 0 is the mean of the rows. Whiskers: standard deviation over "
        "draws.",
        "Bars.",
        chart.svg(),
        f"Explained variance alone: {', '.join(parts)}; the whole SAE {full:.3f}.",
    )


def keep_drop_ce(data: RunData) -> Figure:
    """Draw the cross entropy of the next token with a group only, and without it."""
    lacking = "a language model to patch reconstructions into"
    patched = need(need(data.evaluation, lacking).language_model, lacking)
    bars = [("whole", patched.full, "s3")]
    for group, colour in GROUPS.items():
        bars.append((f"only {group}", patched.keep[group], colour))
        bars.append(("only random", patched.keep[as_active(group)], "s2"))
        bars.append((f"no {group}", patched.drop[group], colour))
    floors = {
        "clean": patched.clean.ce.value,
        "mean": patched.mean.ce.value,
        "zero": patched.zero.ce.value,
    }
    values = [effect.ce.value for _, effect, _ in bars]
    low = min(floors["clean"], *values) * 0.95
    chart = Chart(
        Scale(low, max(floors["mean"], floors["zero"], *values) * 1.03),
        Scale(-0.6, len(bars) - 0.5),
        "cross entropy of the next token (nats)",
        "",
        y_names=[name for name, _, _ in bars][::-1],
        left=104,
    )
    for place, (name, effect, colour) in enumerate(bars[::-1]):
        value, error = effect.ce.value, effect.ce.error or 0.0
        hover = f"{name}: {value:.3f} ± {error:.3f} nats"
        left, right = sorted((floors["clean"], value))
        chart.cell(left, right, place - 0.36, place + 0.36, colour, 1.0, hover)
    for name, value in floors.items():
        chart.rule(x=value)
        chart.above(value, "model" if name == "clean" else name)
    return Figure(
        "keep-drop-ce",
        "Loss of the language model by group",
        f"Cross entropy with the reconstruction of SAE {patched.seed} in place of the "
        "activations: whole, from one group of features only, or without it; grey: random "
        "features with the same activation mass as the group above. Bars begin at the "
        "unmodified model, so their length is the increase. Lines: with the mean activation or "
        "with zeros in place of activations.",
        ", ".join(f"{name} {effect.ce.value:.2f}" for name, effect, _ in bars)
        + f" nats; unmodified model {floors['clean']:.2f}.",
        chart.svg(),
        f"Stable features alone leave a loss of {patched.keep['stable'].ce.value:.2f} nats, "
        f"unstable ones {patched.keep['unstable'].ce.value:.2f}; the unmodified model has "
        f"{floors['clean']:.2f}.",
    )


def spectra(data: RunData) -> Figure:
    """Draw the share of a group's energy over its principal directions."""
    rows = need(data.subspaces["singular_values"], _NO_SUBSPACES)
    d = max(row["index"] for row in rows)
    chart = Chart(Scale(0, d), Scale(0, 1), "principal directions", "share of the energy")
    parts = []
    for group, colour in GROUPS.items():
        shares = mean_by([row for row in rows if row["group"] == group], "index", "share")
        if not shares or not sum(shares.values()):
            continue
        total = np.cumsum(list(shares.values()))
        chart.line([0, *shares], [0.0, *(total / total[-1])], colour, hover=group)
        chart.legend(group, colour, "l")
        known = [row for row in data.subspaces["spectra"] if row["group"] == group]
        rank = np.mean([row["effective_rank"] for row in known if row["features"]])
        parts.append(f"{group} {rank:.0f}")
    need(parts, _NO_SUBSPACES)
    chart.line([0, d], [0.0, 1.0], "s2", dashed=True)
    chart.rule(y=0.9)
    chart.legend("no structure", "s2", "d")
    return Figure(
        "spectra",
        "Dimensions of each group",
        "Share of the energy of the features' directions in their first principal directions, mean "
        "over SAEs. A curve far above the dashed line means that the group lies in few dimensions. "
        "Note that fewer features span fewer dimensions.",
        "Rising curves.",
        chart.svg(),
        f"Effective ranks: {', '.join(parts)} of {d} dimensions.",
    )


def overlap_stable(data: RunData) -> Figure:
    """Draw the overlap of the subspaces of stable features."""
    return _overlap(data, "stable")


def overlap_unstable(data: RunData) -> Figure:
    """Draw the overlap of the subspaces of unstable features."""
    return _overlap(data, "unstable")


def _overlap(data: RunData, group: str) -> Figure:
    rows = [row for row in data.subspaces["curves"] if row["group"] == group]
    need(rows, f"subspaces of {group} features in two SAEs")
    curve = mean_by(rows, "rank", "overlap")
    ranks = list(curve)
    chart = Chart(
        Scale(0, max(ranks)), Scale(0, 1), "dimensions of the subspaces", "overlap of the subspaces"
    )
    for null, (words, colour) in NULLS.items():
        if f"{null}_mean" not in rows[0]:
            continue
        mean = mean_by(rows, "rank", f"{null}_mean")
        if not mean:
            continue
        low, high = (mean_by(rows, "rank", f"{null}_{end}") for end in ("low", "high"))
        both = [rank for rank in low if rank in high]
        if both:
            chart.band(both, [low[r] for r in both], [high[r] for r in both], colour)
        chart.line(list(mean), list(mean.values()), colour, True, hover=words)
        chart.legend(words, colour, "d")
    chart.line(ranks, list(curve.values()), GROUPS[group], hover=group)
    compared = np.mean([row["rank"] for row in data.subspaces["pairs"] if row["group"] == group])
    chart.rule(x=float(compared))
    at = min(ranks, key=lambda rank: abs(rank - compared))
    value, chance = curve[at], mean_by(rows, "rank", "covariance_mean").get(at)
    beside = "" if chance is None else f", directions with the data's covariance by {chance:.2f}"
    return Figure(
        f"overlap-{group}",
        f"Does the subspace of {group} features recur?",
        f"Solid: overlap of the principal subspaces of the {group} features of two SAEs (1: the "
        "same subspace), mean over pairs, for every dimension. Dashed, with bands of the draws: "
        "random subspaces; as many directions drawn with the data's covariance; as many random "
        "features of the same SAEs; the same latents before training. The vertical line is the "
        "dimension used in the findings.",
        "Curves over the dimension.",
        chart.svg(),
        f"At {compared:.0f} dimensions the subspaces overlap by {value:.2f}{beside}.",
    )


def contributions(data: RunData) -> Figure:
    """Draw the correlation of groups' contributions to tokens between SAEs."""
    rows = need(data.contributions, "contributions of groups to tokens (saefast subspace)")
    chart = Chart(
        Scale(-0.6, 1.6),
        Scale(0, 1),
        "features",
        "squared correlation between SAEs",
        x_names=tuple(GROUPS),
    )
    parts = []
    for at, (group, colour) in enumerate(GROUPS.items()):
        mine = [row for row in rows if row["group"] == group]
        if not mine:
            continue
        value, chance = (float(np.mean([row[name] for row in mine])) for name in _BOTH_R2)
        chart.bar(at - 0.4, at, value, colour, f"{group}: {value:.3f}")
        chart.bar(at, at + 0.4, chance, "s2", f"equally active random features: {chance:.3f}")
        parts.append(f"{group} {value:.2f} (random {chance:.2f})")
    need(parts, "contributions of groups to tokens (saefast subspace)")
    chart.legend("stable", "s0")
    chart.legend("unstable", "s1")
    chart.legend("random", "s2")
    return Figure(
        "contributions",
        "Do groups contribute the same to tokens?",
        "The contribution of a group of features to the reconstruction of a token is a vector. "
        "Bars: squared correlation of these vectors between two SAEs, mean over pairs; grey: for "
        "random features with the same activation mass. Features that recur only as a subspace "
        "can still contribute the same together.",
        "Bars.",
        chart.svg(),
        f"Squared correlation of contributions: {', '.join(parts)}.",
    )


def angles(data: RunData) -> Figure:
    """Draw the principal angles between the subspaces of two SAEs."""
    rows = need(data.subspaces["angles"], _NO_SUBSPACES)
    chart = Chart(
        Scale(0, 100), Scale(0, 90), "principal angles, smallest first (%)", "angle (degrees)"
    )
    parts = []
    for group, colour in GROUPS.items():
        pairs: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            if row["group"] == group:
                pairs.setdefault((row["a"], row["b"]), []).append(np.degrees(row["angle"]))
        for (a, b), values in pairs.items():
            name = f"{group}, SAEs {data.seeds[a]} and {data.seeds[b]}"
            chart.line(_hundred(len(values)), values, colour, hover=name)
        if pairs:
            median = np.median([angle for values in pairs.values() for angle in values])
            parts.append(f"{group} {median:.0f}°")
            chart.legend(group, colour, "l")
    need(parts, _NO_SUBSPACES)
    return Figure(
        "angles",
        "Angles between the subspaces",
        "Principal angles between the subspaces of two SAEs, one line for each pair. 0 degrees: a "
        "direction in both subspaces; 90: a direction orthogonal to the other subspace.",
        "Rising lines.",
        chart.svg(),
        f"Median angles: {', '.join(parts)}.",
    )


def pooling_frontier(data: RunData) -> Figure:
    """Draw matched features against explained variance for pooling and its controls."""
    lacking = "pooling and its controls (saefast pool)"
    methods = need(need(data.pooling, lacking).methods, lacking)
    names = [row.method for row in methods]
    xs = [row.equal_match_share for row in methods]
    ys = [row.equal_explained_variance for row in methods]
    chart = Chart(
        covering(xs, zero=False),
        covering(ys, zero=False),
        "features with a match in the other SAE (share)",
        "explained variance",
    )
    for name, x, y in zip(names, xs, ys, strict=True):
        hover = f"{name}: {percent(x)} matched, explained variance {y:.3f}"
        chart.point(x, y, METHODS.get(name, "s5"), hover)
        chart.legend(name, METHODS.get(name, "s5"))
    matched, explained = names[xs.index(max(xs))], names[ys.index(max(ys))]
    also = "and" if matched == explained else f"{explained} ones"
    return Figure(
        "pooling-frontier",
        "Does pooling pay?",
        "Each point is a pair of SAEs from disjoint seeds: pooled from several seeds, one SAE "
        "pruned to its most frequent features, trained from scratch at that width, and single. All "
        "are reduced to the same number of features alive. Up and to the right is better.",
        "; ".join(
            f"{n}: {x:.2f} matched, {y:.3f} explained"
            for n, x, y in zip(names, xs, ys, strict=True)
        ),
        chart.svg(),
        f"{matched.capitalize()} SAEs have the most matched features ({percent(max(xs))})"
        f"{'' if matched == explained else ','} {also} explain the most variance ({max(ys):.3f}).",
    )


def _hundred(count: int) -> list[float]:
    return [100.0 * i / max(count - 1, 1) for i in range(count)]
