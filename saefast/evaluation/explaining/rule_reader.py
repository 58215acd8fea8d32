"""Rules that explain the firings of a latent, and their execution on a text."""

from typing import NamedTuple

import numpy as np

from saefast.evaluation.explaining.contexts import Booleans, TokenText
from saefast.evaluation.explaining.predicates import FAMILIES, Family

MOST_PARTS = 5
"""Maximum number of predicates in a rule"""


class Rule(NamedTuple):
    """A union of at most five predicates of one family."""

    family: str
    """name in `FAMILIES`"""
    arguments: tuple[str, ...]
    """argument of each predicate, such as a token"""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return FAMILIES[self.family].kind

    @property
    def text(self) -> str:
        """The rule in words."""
        return FAMILIES[self.family].words(self.arguments)


class RuleReader:
    """Reader that executes rules on a text; its attributes are computed once for all rules.

    Args:
        text: held-out or generated text.
    """

    def __init__(self, text: TokenText) -> None:
        self.text = text
        self._families: dict[str, tuple[Family, dict[str, int]]] = {}

    def holds(self, rule: Rule, first: int = 0, end: int | None = None) -> Booleans:
        """Return the mask [end - first] of the rows on which a rule holds.

        Args:
            rule: rule to execute.
            first: first row.
            end: row after the last; None: the number of rows.
        """
        if rule.family not in self._families:
            built = FAMILIES[rule.family].build(self.text)
            places = {argument: place for place, argument in enumerate(built.arguments)}
            self._families[rule.family] = built, places
        family, places = self._families[rule.family]
        values = np.zeros(family.values, dtype=bool)
        for argument in rule.arguments:
            if argument in places:
                span = np.searchsorted(family.predicate, [places[argument], places[argument] + 1])
                values[family.value[slice(*span)]] = True
        return values[family.attribute[first:end]]
