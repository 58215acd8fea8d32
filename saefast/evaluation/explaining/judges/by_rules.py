"""Judge explanations that are rules by executing them."""

from collections.abc import Sequence

import numpy as np

from saefast.evaluation.explaining.judges.protocol import FREE, Cost, Floats, Question, Window
from saefast.evaluation.explaining.predicates import RuleReader


class RulesJudge:
    """Executes explanations that are rules; others it cannot rate.

    An explanation fits a window if its rule holds on any token, and marks to the degree of the
    marked tokens on which it holds.
    """

    name = "rules"
    explains = False
    graded = False

    def __init__(self) -> None:
        self._reader: RuleReader | None = None

    def explain(self, examples: Sequence[Sequence[Window]]) -> list[str]:
        """Return no explanations: those of rules come from `find_rules`."""
        return [""] * len(examples)

    def rate(self, questions: Sequence[Question]) -> Floats:
        """[questions] Return 0 or 1, for marks a share; NaN for explanations without a rule."""
        return np.array([self._rating(question) for question in questions], dtype=np.float64)

    def cost(self, examples: Sequence[Sequence[Window]], questions: Sequence[Question]) -> Cost:
        """Return that nothing is paid."""
        return FREE

    def _rating(self, question: Question) -> float:
        rule, window = question.explanation.rule, question.window
        if rule is None:
            return float("nan")
        if self._reader is None or self._reader.text is not window.text:
            self._reader = RuleReader(window.text)
        holds = self._reader.holds(rule, window.first, window.end)
        if question.marks is None:
            return float(holds.any())
        return float(holds[question.marks].mean())
