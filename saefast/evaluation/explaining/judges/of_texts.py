"""Ratings of whole texts, such as steered ones, by judges of explanations."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from saefast.evaluation.explaining.contexts import text_of_pieces
from saefast.evaluation.explaining.judges.protocol import (
    Cost,
    Explanation,
    Floats,
    Judge,
    Question,
    Window,
)

PER_PROMPT = 2
"""Number of texts in a prompt of an `EndpointJudge`: the two of a pair, in their order"""

_WORD = re.compile(r"\s*\S+|\s+")


class TextRater:
    """Rater of texts by explanations, for the argument `judge` of `steer`.

    Args:
        judge: judge that rates texts as it rates windows; not `RulesJudge`, which needs rules.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.name = judge.name

    def rate(self, explanations: Sequence[str], texts: Sequence[str]) -> Floats:
        """Rate how well each explanation fits its text.

        Args:
            explanations: [n] explanations.
            texts: [n] texts.

        Returns:
            [n] float64, probability; NaN for empty texts and answers that cannot be parsed.
        """
        ratings = np.full(len(texts), np.nan)
        shown = [place for place, text in enumerate(texts) if text]
        if shown:
            ratings[shown] = self._judge.rate(_questions(explanations, texts, shown))
        return ratings

    def cost(self, explanations: Sequence[str], texts: Sequence[str]) -> Cost:
        """Return the cost of rating texts, none of which may be empty.

        Args:
            explanations: [n] explanations.
            texts: [n] texts.

        Returns:
            Calls and tokens.
        """
        return self._judge.cost([], _questions(explanations, texts, range(len(texts))))


def _questions(
    explanations: Sequence[str], texts: Sequence[str], places: Sequence[int]
) -> list[Question]:
    """Build questions on whether explanations fit the texts at given indices."""
    words = [_WORD.findall(texts[place]) for place in places]
    text = text_of_pieces(words)
    return [
        Question(
            Explanation(explanations[place]),
            Window(text, first, end, np.zeros(end - first, dtype=np.float32)),
        )
        for place, (first, end) in zip(places, pairwise(text.context_starts.tolist()), strict=True)
    ]
