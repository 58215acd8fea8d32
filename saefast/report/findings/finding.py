"""Findings: statements with a comparison to published results."""

from typing import NamedTuple

AGREES, DISAGREES, MIXED = "as published", "not as published", "in part as published"
UNCLEAR = "cannot tell"


class Finding(NamedTuple):
    """One or two sentences on a topic."""

    topic: str
    text: str
    verdict: str = ""
    """comparison with published results, empty if there are none"""
