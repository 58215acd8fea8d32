"""Judges of explanations rate whole texts, such as steered ones."""

import json
from typing import Any

import numpy as np
import pytest
from helpers.chat_server import serving

from saefast.evaluation import EndpointJudge, RulesJudge, TextRater
from saefast.evaluation.explaining.judges import Question
from saefast.evaluation.explaining.judges.of_texts import PER_PROMPT


class Lengths:
    """Rate a text by the number of its letters that are shown."""

    name = "lengths"
    explains = graded = False

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []

    def rate(self, questions: list[Question]) -> Any:
        for question in questions:
            text = "".join(question.window.pieces)
            self.shown.append((question.explanation.text, text))
            assert question.marks is None
        return np.array([float(len(text)) for _, text in self.shown])


def test_texts_are_shown_completely() -> None:
    judge = Lengths()
    texts = ["two words", "\n  def f(x):\n\treturn x\n", "caf\u00e9 \u2603", "x" * 200, " "]
    ratings = TextRater(judge).rate(list("abcde"), texts)
    assert judge.shown == list(zip("abcde", texts, strict=True))
    assert ratings.tolist() == [len(text) for text in texts]


def test_texts_without_a_letter_get_no_number() -> None:
    ratings = TextRater(Lengths()).rate(["a", "b", "c"], ["", "four", ""])
    np.testing.assert_array_equal(ratings, [np.nan, 4, np.nan])
    assert np.isnan(TextRater(Lengths()).rate(["a"], [""])).all()
    assert np.isnan(TextRater(RulesJudge()).rate(["a"], ["text"])).all()


def test_an_endpoint_sees_both_texts_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = [word for word in ("cat", "dog") for _ in range(4)]
    pairs = ["a cat", "no pet", "none", "cats", "dogs", "none", "a", "dog"]
    with serving() as server:
        judge = EndpointJudge(server.url, "m", per_prompt=PER_PROMPT, progress=False)
        cost = TextRater(judge).cost(words, pairs)
        assert cost.calls == 4
        assert not server.bodies
        ratings = TextRater(judge).rate(words, pairs)
        asked = [json.loads(body["messages"][-1]["content"]) for body in server.bodies]
    assert ratings.tolist() == [1, 0, 0, 1, 1, 0, 0, 1]
    assert sorted(each["passages"] for each in asked) == sorted(
        pairs[first : first + 2] for first in range(0, 8, 2)
    )
