"""Protocol of judges of explanations: windows, questions, ratings and costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.explaining.contexts import Booleans, Integers, TokenText
from saefast.evaluation.explaining.rule_reader import Rule
from saefast.types import brief

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive tokens of a text, with the activation of a latent on each."""

    text: TokenText
    """the text"""
    first: int
    """first row in the text"""
    end: int
    """row after the last"""
    strength: NDArray[np.float32]
    """[end - first] activations, 0 where the latent is silent"""

    __repr__ = brief

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Texts of the tokens."""
        return tuple(self.text.pieces(self.first, self.end))

    @property
    def fires(self) -> Booleans:
        """Mask of the tokens on which the latent fires, [end - first]."""
        return self.strength > 0


class Explanation(NamedTuple):
    """Description of the firings of a latent."""

    text: str
    """description in words"""
    rule: Rule | None = None
    """executable form, if there is one"""


class Question(NamedTuple):
    """Question on whether an explanation fits a window."""

    explanation: Explanation
    """explanation to rate"""
    window: Window
    """window to compare it with"""
    marks: Integers | None = None
    """positions of tokens in the window; None asks whether the latent fires anywhere in the window
    (detection), otherwise whether it fires on these tokens (fuzzing)"""


class Cost(NamedTuple):
    """Estimated cost of questions."""

    calls: int
    """number of requests to an endpoint"""
    tokens: int
    """estimated number of tokens of prompts and, at most, of answers"""
    price: float | None = None
    """price of these tokens; None without the prices of a judge"""

    def plus(self, other: "Cost") -> "Cost":
        """Return the cost of both.

        Args:
            other: cost to add; the price is known if both prices are.
        """
        known = [each.price for each in (self, other) if each.price is not None]
        price = sum(known) if len(known) == 2 else None
        return Cost(self.calls + other.calls, self.tokens + other.tokens, price)

    def in_words(self) -> str:
        """Return the cost in words."""
        price = "" if self.price is None else f" (at most {self.price:.2f} at the given prices)"
        return f"{self.calls} requests with {self.tokens} tokens{price}"


class Judge(Protocol):
    """Rater of explanations, which may write them, too."""

    name: str
    """name of the judge in scores and messages"""
    explains: bool
    """whether it can also write explanations"""
    graded: bool
    """whether ratings only order windows, so that no threshold separates yes from no"""

    def explain(self, examples: Sequence[Sequence[Window]]) -> list[str]:
        """Write an explanation for each list of windows on which a latent fires, or "".

        Args:
            examples: for each latent, windows of text on which it fires.

        Returns:
            An explanation for each latent, "" for none.
        """

    def rate(self, questions: Sequence[Question]) -> Floats:
        """Rate questions by the probability of yes.

        Args:
            questions: questions, each with an explanation and a window.

        Returns:
            [questions] float64; NaN where the answer cannot be parsed.
        """

    def cost(self, examples: Sequence[Sequence[Window]], questions: Sequence[Question]) -> Cost:
        """Return the cost of explaining the examples and rating the questions.

        Args:
            examples: for each latent, windows of text on which it fires.
            questions: questions, each with an explanation and a window.

        Returns:
            Calls and tokens.
        """


class FreeJudge:
    """Base of judges that compute on this machine, at no cost, and write no explanations."""

    explains = False

    def explain(self, examples: Sequence[Sequence[Window]]) -> list[str]:
        """Return empty explanations.

        Args:
            examples: for each latent, windows of text on which it fires.

        Returns:
            "" for each latent.
        """
        return [""] * len(examples)

    def cost(self, examples: Sequence[Sequence[Window]], questions: Sequence[Question]) -> Cost:
        """Return a cost of zero.

        Args:
            examples: for each latent, windows of text on which it fires.
            questions: questions, each with an explanation and a window.

        Returns:
            A cost of zero, since nothing is requested.
        """
        return Cost(0, 0)
