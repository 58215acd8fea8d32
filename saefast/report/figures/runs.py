"""Figures of whole SAEs: training, pairs, and shared features."""

import math
from typing import Any

import numpy as np

from saefast.report.chart import HEIGHT, Chart, frame, numbered
from saefast.report.figures.figure import Figure, mean_by, need
from saefast.report.run_data import RunData
from saefast.report.scale import Scale, covering
from saefast.report.summary import pair_shares, percent, small

_USUAL = 0.7
"""Cosine from which papers count a feature as shared."""
COLOURS = ("s0", "s1", "s3", "s4", "s5", "s2")


def training_curves(data: RunData) -> Figure:
    """Draw the explained variance over the training."""
    rows = need(data.metrics, "the log of the training (metrics.jsonl)")
    labels = list(dict.fromkeys(row["sae"] for row in rows))
    known = [row["explained_variance"] for row in rows if row.get("explained_variance") is not None]
    low = max(0.0, float(np.quantile(need(known, "explained variance in the log"), 0.02)))
    top = max(max(known), low + 1e-6)
    chart = Chart(
        covering([row["tokens"] for row in rows]),
        Scale(low, top + 0.06 * (top - low)),
        "rows trained on",
        "explained variance",
    )
    ends: list[float] = []
    for number, label in enumerate(labels):
        mine = [row for row in rows if row["sae"] == label]
        colour = COLOURS[number % len(COLOURS)]
        tokens = [row["tokens"] for row in mine]
        values = [row.get("explained_variance") for row in mine]
        chart.line(tokens, values, colour, hover=label)
        ends += [value for value in values if value is not None][-1:]
        if len(labels) <= 6:
            chart.legend(label.removeprefix("seed-") if number else label, colour, "l")
    return Figure(
        "training",
        "Training",
        "Explained variance of each SAE during training. Curves on top of each other mean that "
        "seeds reach the same quality, regardless of the features that they find.",
        f"{len(labels)} curves.",
        chart.svg(),
        f"The SAEs end at an explained variance of {_between(ends, 3)}.",
    )


def threshold_curves(data: RunData) -> Figure:
    """Draw stability by the threshold of a match."""
    stability = need(data.stability, "the stability of features (saefast stability)")
    xs = [point.threshold for point in stability.curve]
    chart = Chart(Scale(0, 1), Scale(0, 1), f"threshold ({data.similarity})", "share of features")
    for name, words, colour, kind in (
        ("score", "mean score", "s3", "l"),
        ("stable", "stable", "s0", "l"),
        ("unstable", "unstable", "s1", "l"),
        ("chance", "chance", "s2", "d"),
    ):
        chart.line(
            xs,
            [getattr(point, name) for point in stability.curve],
            colour,
            kind == "d",
            hover=words,
        )
        chart.legend(words, colour, kind)
    threshold = float(np.mean(stability.thresholds))
    chart.rule(x=threshold)
    used = min(stability.curve, key=lambda point: abs(point.threshold - threshold))
    return Figure(
        "threshold-curves",
        "Dependence on the threshold",
        "Mean score and shares of stable and unstable features for every threshold from which a "
        "match could count; “chance” is the mean score of random directions. The vertical line is "
        "the threshold used here.",
        "Curves of the mean score, of the shares of stable and unstable features, and of chance.",
        chart.svg(),
        f"At a threshold of {used.threshold:.2f} the mean score is {used.score:.2f}, for "
        f"random directions {small(used.chance)}.",
    )


def shared_curves(data: RunData) -> Figure:
    """Draw the share of shared features by three criteria."""
    rows = [row for row in data.overlap if row["name"] == "shared"]
    need(rows, "matches between pairs of SAEs (saefast match)")
    chart = Chart(Scale(0, 1), Scale(0, 1), f"threshold ({data.similarity})", "shared features")
    drawn = []
    for side, words, colour in (
        ("decoder", "decoder", "s0"),
        ("both", "both", "s3"),
        ("same", "both, same partner", "s1"),
    ):
        mine = [row for row in rows if row["side"] == side and row["match"] == _best_match(rows)]
        curve = mean_by([row for row in mine if row["of"] in ("both", "a")], "threshold", "value")
        if curve:
            chart.line(list(curve), list(curve.values()), colour, hover=words)
            chart.legend(words, colour, "l")
            at = min(curve, key=lambda threshold: abs(threshold - _USUAL))
            drawn.append(f"{percent(curve[at])} ({words})")
    need(drawn, "matches between pairs of SAEs (saefast match)")
    chart.rule(x=_USUAL)
    return Figure(
        "shared-curves",
        "Features that two SAEs share",
        "Share of features whose partner in another SAE is at least that similar: by decoder row, "
        "by decoder and encoder row, and by both with the same partner; mean over pairs, with "
        "one-to-one partners where these were computed.",
        "Falling curves.",
        chart.svg(),
        f"With {data.similarity} {_USUAL:g} or more, two SAEs share {', '.join(drawn)} of their "
        "features.",
    )


def pair_heat_map(data: RunData) -> Figure:
    """Draw the share of shared features for each pair of SAEs."""
    threshold = float(np.mean(data.stability.thresholds)) if data.stability else 0.7
    values = pair_shares(data, threshold)
    need(values, "matches between pairs of SAEs (saefast match)")
    seeds = data.seeds
    names = [str(seed) for seed in seeds]
    ends = Scale(-0.5, len(seeds) - 0.5)
    chart = Chart(ends, ends, "SAE (seed)", "SAE (seed)", names, names)
    for (a, b), share in values.items():
        for x, y in ((a, b), (b, a)):
            hover = f"SAEs {names[x]} and {names[y]}: {percent(share)}"
            # Faint enough that the number in the cell, in the colour of all text, stays readable.
            chart.cell(x - 0.48, x + 0.48, y - 0.48, y + 0.48, "s0", 0.55 * share, hover)
            if len(seeds) <= 8:
                chart.text(x, y, f"{share:.2f}")
    low, high = min(values.values()), max(values.values())
    return Figure(
        "pair-heat-map",
        "Every pair of SAEs",
        f"Share of features of one SAE with a match of {data.similarity} {threshold:.2f} or more "
        "in the other (by decoder row, mean of both directions).",
        f"A matrix of {len(seeds)} by {len(seeds)}.",
        chart.svg(),
        f"Two SAEs share {_between([low, high], 2)} of their features.",
    )


def membership_donut(data: RunData) -> Figure:
    """Draw the number of SAEs that have each feature."""
    need(data.stability, "the stability of features (saefast stability)")
    support = np.asarray(data.alive("support"), int)
    count = len(data.seeds)
    shares = np.bincount(support, minlength=count + 1)[1:] / max(len(support), 1)
    parts, start = [], 0.0
    middle_x, middle_y, outer, inner = 150.0, HEIGHT / 2, 118.0, 66.0
    for number, share in enumerate(shares, 1):
        strength = 0.25 + 0.75 * (number - 1) / max(count - 1, 1)
        colour = "s1" if number == 1 else "s0"
        shown = 1.0 if number == 1 else strength
        words = f"in {number} of {count}: {percent(float(share))}"
        if share > 0:
            path = _slice(middle_x, middle_y, outer, inner, start, start + float(share))
            parts.append(
                f'<path class="f {colour}" fill-opacity="{shown:.2f}" d="{path}"{numbered(number)}>'
                f"<title>{words}</title></path>"
            )
        start += float(share)
        if count <= 10:
            y = middle_y - 12.0 * count + 24 * number - 12
            parts.append(
                f'<rect class="f {colour}" fill-opacity="{shown:.2f}" x="296" y="{y - 10:.0f}" '
                f'width="12" height="12"/><text x="316" y="{y:.0f}">{words}</text>'
            )
    parts.append(
        f'<text class="big" x="{middle_x}" y="{middle_y + 2}" text-anchor="middle">'
        f'{percent(float(shares[0]))}</text><text x="{middle_x}" y="{middle_y + 20}" '
        'text-anchor="middle">in one only</text>'
    )
    return Figure(
        "membership",
        "Number of SAEs that have a feature",
        f"All features alive of the {count} SAEs by the number of SAEs that have them, their own "
        "included.",
        "Donut: "
        + ", ".join(f"{percent(float(s))} in {n}" for n, s in enumerate(shares, 1))
        + f" of {count}.",
        frame("".join(parts)),
        f"{percent(float(shares[0]))} of the features are in one SAE only, "
        f"{percent(float(shares[-1]))} in all {count}.",
        support,
    )


def only_in_one(data: RunData) -> Figure:
    """Draw the shares of features in one SAE and in all SAEs by the number of SAEs."""
    lacking = "membership over subsets of SAEs"
    points = need(need(data.membership, lacking).curve, lacking)
    xs = [point.dictionaries for point in points]
    chart = Chart(
        Scale(min(xs) - 0.3, max(xs) + 0.3), Scale(0, 1), "SAEs compared", "share of features"
    )
    for name, words, colour in (("alone", "in one only", "s1"), ("everywhere", "in all", "s0")):
        chart.line(xs, [getattr(point, name) for point in points], colour)
        for point in points:
            at, value = point.dictionaries, getattr(point, name)
            deviation = getattr(point, f"{name}_deviation") or 0.0
            chart.whisker(at, value - deviation, value + deviation)
            chart.point(at, value, colour, f"{words}, {at} SAEs: {percent(value)}")
        chart.legend(words, colour)
    return Figure(
        "only-in-one",
        "Shared features by the number of SAEs",
        "Share of features that no other of the compared SAEs has, and share that all have, by the "
        "number of SAEs compared; mean and standard deviation over choices of that many SAEs.",
        "Two curves.",
        chart.svg(),
        f"Of {xs[-1]} SAEs {percent(points[-1].alone)} of the features are in one only and "
        f"{percent(points[-1].everywhere)} in all.",
    )


def _best_match(rows: list[dict[str, Any]]) -> str:
    return "one_to_one" if any(row["match"] == "one_to_one" for row in rows) else "nearest"


def _between(values: list[float], digits: int) -> str:
    ends = dict.fromkeys(f"{end:.{digits}f}" for end in (min(values), max(values)))
    return " to ".join(ends)


def _slice(x: float, y: float, outer: float, inner: float, start: float, end: float) -> str:
    """Return the path of a part of a ring, from one share of a turn to another."""
    end = min(end, start + 0.9999)
    at = [
        (x + r * math.sin(2 * math.pi * turn), y - r * math.cos(2 * math.pi * turn))
        for r, turn in ((outer, start), (outer, end), (inner, end), (inner, start))
    ]
    long = int(end - start > 0.5)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = at
    return (
        f"M{x0:.2f} {y0:.2f}A{outer} {outer} 0 {long} 1 {x1:.2f} {y1:.2f}"
        f"L{x2:.2f} {y2:.2f}A{inner} {inner} 0 {long} 0 {x3:.2f} {y3:.2f}Z"
    )
