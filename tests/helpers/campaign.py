"""Number of cases that a test of tests/trust has to run, and how they have ended."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Campaign:
    """Number of cases to run, and numbers of those that have ended by how they have ended."""

    cases: int
    outcomes: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: str, cases: int = 1) -> None:
        """Add cases that have ended in this way, for example in `clear error`."""
        self.outcomes[outcome] += cases
