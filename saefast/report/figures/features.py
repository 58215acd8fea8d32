"""Figures of single features: stability, similarity and frequency."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saefast.report.chart import Chart
from saefast.report.figures.figure import Figure, cells_of, counted, need
from saefast.report.run_data import RunData
from saefast.report.scale import Scale, covering
from saefast.report.summary import percent

GROUP_COLOURS = {"stable": "s0", "mixed": "s2", "unstable": "s1"}
_NO_STABILITY = "the stability of features (saefast stability)"
_WEAK = 0.1
"""Rank correlation below which a dependence is not called one."""


def similarity_histogram(data: RunData) -> Figure:
    """Draw a histogram of cosines to the best match, beside random directions."""
    stability = need(data.stability, _NO_STABILITY)
    edges = np.array([0.0, *(point.threshold for point in stability.curve)])
    values = np.concatenate(
        [
            np.delete(np.asarray(row, float), seed)
            for row, seed in zip(data.alive("similarity"), _own_place(data), strict=True)
        ]
    )
    counts, _ = np.histogram(np.clip(values, 0, 1), edges)
    shares = counts / max(len(values), 1)
    reaches = np.array([1.0, *(point.chance for point in stability.curve)])
    chance = np.append(-np.diff(reaches), 0.0)[: len(shares)]
    chart = Chart(
        Scale(0, 1),
        covering([*shares, *chance]),
        f"{data.similarity} to the best match",
        "share of features",
    )
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        chart.bar(left, right, share, "s0", f"{left:.2f} to {right:.2f}: {percent(share)}")
    xs = [x for pair in pairwise(edges) for x in pair]
    chart.line(xs, [y for y in chance for _ in range(2)], "s2", True, hover="random directions")
    threshold = float(np.mean(stability.thresholds))
    chart.rule(x=threshold)
    chart.legend("features", "s0")
    chart.legend("random directions", "s2", "d")
    above = float((values >= threshold).mean())
    return Figure(
        "similarity-histogram",
        "Similarity of features in two SAEs",
        f"{data.similarity.capitalize()} of each feature to the most similar feature of each other "
        "SAE. The dashed line is the expectation for as many random directions; the vertical line "
        "is the threshold "
        f"{threshold:.2f} from which a match counts.",
        "Histogram.",
        chart.svg(),
        f"{percent(above)} of the best matches reach the threshold {threshold:.2f}; those of "
        f"random directions are most often near {edges[int(chance.argmax())]:.2f}.",
    )


def score_histogram(data: RunData) -> Figure:
    """Draw a histogram of stability scores, beside random directions."""
    stability = need(data.stability, _NO_STABILITY)
    scores = data.alive("score")
    others = max(len(data.seeds) - 1, 1)
    hits = np.rint(scores * others).astype(int)
    shares = np.bincount(hits, minlength=others + 1) / max(len(hits), 1)
    p = float(np.mean(stability.chance))
    chance = _binomial(others, p)
    names = [f"{hit}/{others}" for hit in range(others + 1)]
    chart = Chart(
        Scale(-0.6, others + 0.6),
        covering(list(shares)),
        "stability score: share of the other SAEs that have it",
        "share of features",
        names if others <= 10 else (),
    )
    stable, unstable = stability.stable_cut, stability.unstable_cut
    for hit, share in enumerate(shares):
        score = hit / others
        kind = "stable" if score >= stable else "unstable" if score <= unstable else "mixed"
        hover = f"{names[hit]}: {percent(share)}; chance {percent(chance[hit])}"
        chart.bar(hit - 0.38, hit + 0.38, share, GROUP_COLOURS[kind], hover, mark=hit)
        if chance[hit] <= chart.y.high:
            chart.line([hit - 0.45, hit + 0.45], [chance[hit]] * 2, "s5", dashed=True)
    for name, colour in GROUP_COLOURS.items():
        chart.legend(name, colour)
    chart.legend("chance", "s5", "d")
    return Figure(
        "stability-histogram",
        "Stability of features",
        f"The stability score of a feature is the share of the other SAEs in which it has a match. "
        f"Features with a score of at least {stable:g} count as stable, of at most {unstable:g} as "
        f"unstable. For random directions (dashed) {percent(chance[0])} would be in no other SAE.",
        "Histogram.",
        chart.svg(),
        f"{percent(float(shares[0]))} of the features recur in no other SAE, "
        f"{percent(float(shares[-1]))} in all of them.",
        hits,
    )


def decoder_encoder(data: RunData) -> Figure:
    """Draw the density of features by decoder and encoder cosine, for the first pair of SAEs."""
    sides = need(data.sides, "matches by decoder and by encoder (saefast match)")
    low = float(min(0.0, *sides["decoder"], *sides["encoder"]))
    edges = np.linspace(low, 1, 41)
    cells = cells_of(sides["decoder"], sides["encoder"], edges, edges)
    both = counted(cells, edges, edges)
    same = counted(cells[sides["same"]], edges, edges)
    chart = Chart(
        Scale(low, 1),
        Scale(low, 1),
        f"{data.similarity} of decoder rows",
        f"{data.similarity} of encoder rows",
    )
    most = np.log1p(both.max())
    for i, j in zip(*both.nonzero(), strict=True):
        count, share = both[i, j], same[i, j] / both[i, j]
        chart.cell(
            *(edges[i], edges[i + 1], edges[j], edges[j + 1]),
            "s0" if share >= 0.5 else "s1",
            0.25 + 0.75 * float(np.log1p(count) / most),
            f"{count:.0f} features, {percent(share)} with the same partner",
            mark=i * both.shape[1] + j,
        )
    chart.rule(x=0.7)
    chart.rule(y=0.7)
    chart.legend("same partner", "s0")
    chart.legend("different partners", "s1")
    agree = float(sides["same"].mean())
    return Figure(
        "decoder-encoder",
        "Agreement of decoder and encoder",
        f"Features of SAE {data.seeds[0]} by their cosines to the nearest feature of SAE "
        f"{data.seeds[1]}, by decoder row and by encoder row. Stronger colours mean more features. "
        "Blue: most of them have the same partner on both sides. The lines mark 0.7.",
        "Density of features.",
        chart.svg(),
        f"{percent(agree)} of the features have the same partner by decoder and by encoder.",
        _members(data, data.seeds[0], sides["feature"], cells),
    )


def similarity_frequency(data: RunData) -> Figure:
    """Draw the density of features by firing rate and similarity."""
    need(data.stability, _NO_STABILITY)
    rate, soft = data.alive("firing_rate"), data.alive("soft")
    known = rate > 0
    members = np.full(len(rate), -1)
    rate, soft = rate[known], soft[known]
    need(rate, "features that fire")
    x = covering(list(rate), log=True)
    x_edges, y_edges = np.geomspace(x.low, x.high, 41), np.linspace(0, 1, 41)
    cells = cells_of(rate, soft, x_edges, y_edges)
    counts = counted(cells, x_edges, y_edges)
    members[known] = cells
    chart = Chart(
        x, Scale(0, 1), "firing rate (share of rows)", f"mean {data.similarity} to best matches"
    )
    most = np.log1p(counts.max())
    for i, j in zip(*counts.nonzero(), strict=True):
        chart.cell(
            *(x_edges[i], x_edges[i + 1], y_edges[j], y_edges[j + 1]),
            "s4",
            0.15 + 0.85 * float(np.log1p(counts[i, j]) / most),
            f"{counts[i, j]:.0f} features",
            mark=i * counts.shape[1] + j,
        )
    together = float(np.corrcoef(_ranks(rate), _ranks(soft))[0, 1]) if len(rate) > 2 else 0.0
    return Figure(
        "similarity-frequency",
        "Are frequent features the stable ones?",
        "All features alive of all SAEs by firing rate and by mean similarity to their best "
        "matches in the other SAEs. Stronger colours mean more features.",
        "Density of features.",
        chart.svg(),
        f"Similarity {_trend(together)} firing rate: rank correlation {together:.2f}.",
        members,
    )


def effect_by_rate(data: RunData) -> Figure:
    """Draw the effect of single features by firing rate."""
    need(data.features.get("effect"), "marginal effects (saefast evaluate)")
    need(data.stability, _NO_STABILITY)
    rate, effect = data.alive("firing_rate"), np.abs(data.alive("effect"))
    group = data.alive("group")
    known = (rate > 0) & (effect > 0)
    need(rate[known], "features with an effect")
    x = covering(list(rate[known]), log=True)
    edges = np.geomspace(x.low, x.high, 13)
    centres = np.sqrt(edges[1:] * edges[:-1])
    lines = {}
    members = np.full(len(rate), -1)
    for number, name in enumerate(GROUP_COLOURS):
        of = known & (group == name)
        place = np.clip(np.searchsorted(edges, rate[of], "right") - 1, 0, len(centres) - 1)
        members[of] = number * len(centres) + place
        lines[name] = [
            float(np.median(effect[of][place == i])) if (place == i).sum() >= 5 else None
            for i in range(len(centres))
        ]
    drawn = [value for line in lines.values() for value in line if value is not None]
    need(drawn, "enough features of any group")
    y = covering(drawn, log=True)
    chart = Chart(x, y, "firing rate (share of rows)", "variance lost without it")
    for number, (name, line) in enumerate(lines.items()):
        chart.line(list(centres), line, GROUP_COLOURS[name])
        for place, (at, value) in enumerate(zip(centres, line, strict=True)):
            if value is not None:
                mark = number * len(centres) + place
                count = int((members == mark).sum())
                hover = f"{count:,} {name} features near {at:.2g}: {value:.2g}"
                chart.point(at, value, GROUP_COLOURS[name], hover, mark=mark)
        if any(value is not None for value in line):
            chart.legend(name, GROUP_COLOURS[name])
    return Figure(
        "effect-by-rate",
        "Effect of a feature at equal frequency",
        "Median share of the variance that is lost without a feature, among features with a "
        "similar firing rate, regardless of their strength. Lines at the same height mean that "
        "unstable features differ only in being rare. Bins with fewer than five features are "
        "left out.",
        "Lines of stable, mixed and unstable features over the firing rate.",
        chart.svg(),
        _compared(lines["stable"], lines["unstable"]),
        members,
    )


def surface_form(data: RunData) -> Figure:
    """Draw how well a single token predicts each feature, by group."""
    need(data.features.get("token_auroc"), "tokens beside the activations")
    need(data.stability, _NO_STABILITY)
    values, group = data.alive("token_auroc"), data.alive("group")
    edges = np.linspace(0.5, 1, 26)
    lines = {}
    for name in ("stable", "unstable"):
        of = values[(group == name) & np.isfinite(values)]
        if len(of):
            lines[name] = (np.histogram(np.clip(of, 0.5, 1), edges)[0] / len(of), np.median(of))
    need(lines, "stable or unstable features")
    chart = Chart(
        Scale(0.5, 1),
        covering([share for shares, _ in lines.values() for share in shares]),
        "how well one token predicts the feature (AUROC)",
        "share of the group",
    )
    for name, (shares, _) in lines.items():
        xs = [x for pair in pairwise(edges) for x in pair]
        chart.line(xs, [y for y in shares for _ in range(2)], GROUP_COLOURS[name], hover=name)
        chart.legend(name, GROUP_COLOURS[name], "l")
    medians = " and ".join(f"{median:.2f} ({name})" for name, (_, median) in lines.items())
    return Figure(
        "surface-form",
        "Surface form: does one token predict a feature?",
        "For each feature the largest area under the ROC curve of “the token is t” as a predictor "
        "of “the feature fires”: 0.5 means that no token predicts it, 1 that one token determines "
        "it.",
        "Histograms of both groups.",
        chart.svg(),
        f"The best single token predicts features with a median AUROC of {medians}.",
    )


def _members(data: RunData, seed: int, features: NDArray[Any], cells: NDArray[Any]) -> NDArray[Any]:
    """Return the cell of each feature alive, -1 in SAEs of other seeds than `seed`."""
    own = np.flatnonzero(data.alive("seed") == seed)
    by_feature = dict(zip(features.tolist(), cells.tolist(), strict=True))
    members = np.full(len(data.alive("seed")), -1)
    members[own] = [by_feature.get(each, -1) for each in data.alive("feature")[own].tolist()]
    return members


def _trend(correlation: float) -> str:
    if abs(correlation) < _WEAK:
        return "hardly depends on the"
    return f"{'rises' if correlation > 0 else 'falls'} with the"


def _compared(stable: list[float | None], unstable: list[float | None]) -> str:
    """Return a sentence on the effects of both groups in bins that have both."""
    ratios = [b / a for a, b in zip(stable, unstable, strict=True) if a is not None and b]
    if not ratios:
        return "No firing rate has enough stable and unstable features to compare."
    return (
        f"At equal firing rate an unstable feature has {np.median(ratios):.2g} times the effect of "
        "a stable one (median over bins)."
    )


def _own_place(data: RunData) -> np.ndarray:
    """Return the position of its own SAE for each feature alive."""
    place = {seed: position for position, seed in enumerate(data.seeds)}
    return np.array([place[seed] for seed in data.alive("seed").tolist()])


def _binomial(n: int, p: float) -> list[float]:
    from math import comb

    return [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def _ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort(kind="stable").argsort(kind="stable")
