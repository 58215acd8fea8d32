"""What a finding is: words, and how they compare with what papers report."""

from typing import NamedTuple

AGREES, DISAGREES, MIXED = "as published", "not as published", "in part as published"
UNCLEAR = "cannot tell"


class Finding(NamedTuple):
    """One sentence or two."""

    topic: str
    text: str
    verdict: str = ""
    """how it compares with what papers report, empty where they report nothing"""
