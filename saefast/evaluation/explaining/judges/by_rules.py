"""Judge that executes explanations that are rules."""

from collections.abc import Sequence

import numpy as np

from saefast.evaluation.explaining.judges.protocol import Floats, FreeJudge, Question
from saefast.evaluation.explaining.rule_reader import RuleReader


class RulesJudge(FreeJudge):
    """Judge that executes explanations that are rules, and cannot rate others.

    An explanation fits a window if its rule holds on any token; its rating of marks is the share of
    marked tokens on which the rule holds.
    """

    name = "rules"
    graded = False

    def __init__(self) -> None:
        self._reader: RuleReader | None = None

    def rate(self, questions: Sequence[Question]) -> Floats:
        """Rate questions.

        Args:
            questions: questions, each with an explanation and a window.

        Returns:
            [questions] float64: 0 or 1, for marks a share; NaN without a rule.
        """
        return np.array([self._rating(question) for question in questions], dtype=np.float64)

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
