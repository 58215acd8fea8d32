"""Published claims and trends, decided from the rows of `bench study`."""

from typing import NamedTuple

from bench.committed import load, markdown
from bench.study.axes import along, label
from bench.study.rows import Row

HOLDS, FAILS, UNCLEAR = "yes", "no", "?"


class Claim(NamedTuple):
    """A claim on one measure of a cell."""

    words: str
    measure: str
    border: float
    """value that the measure has if there is no difference"""
    above: bool
    """whether the claim says that the measure lies above the border"""


CLAIMS = (
    Claim(
        "Stable features explain more variance than random ones of equal mass",
        "stable_lead",
        0,
        True,
    ),
    Claim(
        "Unstable features explain less variance than random ones of equal mass",
        "unstable_lead",
        0,
        False,
    ),
    Claim(
        "At equal firing rate and strength, an unstable feature contributes less",
        "unstable_effect",
        1,
        False,
    ),
    Claim("Unstable features fire more rarely", "unstable_rate", 1, False),
    Claim(
        "At equal firing rate, a single token predicts unstable features better",
        "unstable_auroc_lead",
        0,
        True,
    ),
    Claim(
        "Subspaces of unstable features recur beyond random subspaces",
        "unstable_beyond_haar",
        0,
        True,
    ),
    Claim(
        "... beyond directions with the covariance of the activations",
        "unstable_beyond_covariance",
        0,
        True,
    ),
    Claim(
        "... beyond subspaces of random features of the same SAEs",
        "unstable_beyond_subset",
        0,
        True,
    ),
    Claim(
        "Contributions of unstable features agree more than those of random ones of equal mass",
        "unstable_r2_beyond_mass",
        0,
        True,
    ),
)
"""Claims of arXiv:2606.12138 and their controls."""


class Trend(NamedTuple):
    """A published trend of the share of pairs along an axis."""

    axis: str
    rises: bool
    published: str


TRENDS = (
    Trend("tokens", True, "0.07 to 0.61, from 0.8 to 80 billion rows"),
    Trend("latents", False, "0.81 to 0.28, from 32 to 131,072 latents"),
    Trend("k", False, "0.42 to 0.18, from k = 32 to 256"),
)
"""Trends of arXiv:2501.16615, of pairs whose decoder and encoder rows both match."""

_PUBLISHED = "shared_both"
_SHARES = {
    "shared": "shared pairs here",
    _PUBLISHED: "encoder as well",
    "stable_share": "stable here",
}
"""Heads of the shares at both ends of an axis, by measure"""


def decided(claim: Claim, row: Row) -> str:
    """Return `HOLDS`, `FAILS` or `UNCLEAR` for a claim in a cell, "" if it was not measured."""
    value = row["measures"].get(claim.measure)
    if value is None:
        return ""
    _, low, high = value
    if low is None or high is None or low <= claim.border <= high:
        return UNCLEAR
    return HOLDS if (low > claim.border) == claim.above else FAILS


def claims() -> str:
    """Return whether each claim holds, by length of training and over all other cells."""
    rows: list[Row] = load("study")["rows"]
    lengths = along(rows, "tokens")
    others = [row for row in rows if row not in lengths]
    heads = ["claim", *(label(row, "tokens") for row in lengths), "other cells: yes, no, ?"]
    lines = [heads, ["---", *["---"] * len(lengths), "---:"]]
    for claim in CLAIMS:
        found = [decided(claim, row) for row in others]
        counts = ", ".join(str(found.count(each)) for each in (HOLDS, FAILS, UNCLEAR))
        lines.append([claim.words, *(decided(claim, row) for row in lengths), counts])
    return markdown(lines)


def trends() -> str:
    """Return shares of pairs and of stable features at both ends of axes with published trends."""
    rows: list[Row] = load("study")["rows"]
    heads = ["axis", *_SHARES.values(), "as published", "published, encoder as well"]
    lines = [heads]
    lines.append(["---"] * len(heads))
    for trend in TRENDS:
        found = along(rows, trend.axis)
        if len(found) < 2:
            continue
        ends = (found[0], found[-1])
        named = " to ".join(label(row, trend.axis) for row in ends)
        cells = [" to ".join(f"{row['measures'][name][0]:.2f}" for row in ends) for name in _SHARES]
        lines.append([named, *cells, direction(trend, *ends), trend.published])
    return markdown(lines)


def direction(trend: Trend, first: Row, last: Row) -> str:
    """Return whether the share of pairs moves as published, as far as its intervals tell."""
    before, after = first["measures"][_PUBLISHED], last["measures"][_PUBLISHED]
    if before[1] is None or after[1] is None:
        return UNCLEAR
    if after[1] > before[2]:
        return HOLDS if trend.rises else FAILS
    if after[2] < before[1]:
        return FAILS if trend.rises else HOLDS
    return UNCLEAR
