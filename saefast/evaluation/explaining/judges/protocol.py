"""Define what a judge of explanations is asked and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.explaining.contexts import Booleans, Integers, TokenText
from saefast.evaluation.explaining.predicates import Rule
from saefast.types import brief

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive tokens of a text, with how strongly a latent fires on each."""

    text: TokenText
    first: int
    """its first row in the text"""
    end: int
    """the row after its last"""
    strength: NDArray[np.float32]
    """[end - first] activations, 0 where the latent is silent"""

    __repr__ = brief

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Texts of the tokens."""
        return tuple(self.text.pieces(self.first, self.end))

    @property
    def fires(self) -> Booleans:
        """[end - first] tokens on which the latent fires."""
        return self.strength > 0


class Explanation(NamedTuple):
    """When a latent fires, in words."""

    text: str
    rule: Rule | None = None
    """the same as a program, where there is one"""


class Question(NamedTuple):
    """Whether an explanation fits a window."""

    explanation: Explanation
    window: Window
    marks: Integers | None = None
    """places of tokens of the window. None: does the latent fire anywhere in the window?
    (detection); else: does it fire on these tokens? (fuzzing)"""


class Cost(NamedTuple):
    """What questions cost before they are asked."""

    calls: int
    """requests to an endpoint"""
    tokens: int
    """tokens of prompts and answers, estimated"""


class Judge(Protocol):
    """Rates explanations; `explains` tells whether it can also write them."""

    name: str
    explains: bool
    graded: bool
    """whether ratings say only which window fits better, so that no threshold parts yes from no"""

    def explain(self, examples: Sequence[Sequence[Window]]) -> list[str]:
        """Write an explanation for each list of windows on which a latent fires.

        "" where the judge gives none.
        """

    def rate(self, questions: Sequence[Question]) -> Floats:
        """[questions] Return the probability of yes, NaN where the answer cannot be parsed."""

    def cost(self, examples: Sequence[Sequence[Window]], questions: Sequence[Question]) -> Cost:
        """Return what it costs to explain the examples and to rate the questions."""


FREE = Cost(0, 0)
"""Cost of judges that compute on this machine"""
