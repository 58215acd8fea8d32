"""Findings: statements with a verdict on this run and a comparison to published results."""

from collections.abc import Iterable
from typing import NamedTuple

AGREES, DISAGREES, MIXED = "as published", "not as published", "in part as published"
HOLDS, FAILS = "holds", "does not hold"
UNCLEAR = "cannot tell"


class Finding(NamedTuple):
    """One or two sentences on a topic, and the claim that they decide."""

    topic: str
    """heading, such as "Stability" """
    text: str
    """one or two sentences with the numbers of this run"""
    verdict: str = ""
    """comparison with published results, empty if there are none"""
    claim: str = ""
    """statement of one line on this run, empty if the finding only describes"""
    holds: str = ""
    """`HOLDS`, `FAILS` or `UNCLEAR`: whether the claim holds in this run"""
    evidence: str = ""
    """numbers that decide the claim"""
    figure: str = ""
    """name of the figure that shows the evidence"""


def in_all(beyond: Iterable[bool]) -> str:
    """Return whether a claim about a null holds.

    Args:
        beyond: for each SAE, or pair of SAEs, whether its value lies beyond the range of the null.
    """
    found = set(beyond)
    if len(found) != 1:
        return UNCLEAR
    return HOLDS if found == {True} else FAILS


def by_interval(low: float, high: float, margin: float = 0.0) -> str:
    """Return whether a claim that a difference is positive holds, given the ends of its interval.

    Args:
        low: lower end; NaN if unknown.
        high: upper end.
        margin: size up to which a difference counts as none.
    """
    if low > margin:
        return HOLDS
    return FAILS if high < -margin else UNCLEAR


def compared(holds: str) -> str:
    """Return the comparison with published results for a claim that papers make."""
    return {HOLDS: AGREES, FAILS: DISAGREES}.get(holds, holds)
