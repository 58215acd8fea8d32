"""Calibration of judges on features with known explanations."""

from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.explaining.contexts import TokenText, text_of_sequences
from saefast.evaluation.explaining.judges.protocol import Explanation, Judge, Question, Window
from saefast.evaluation.explaining.judges.scoring import area, score
from saefast.evaluation.explaining.rule_reader import Rule, RuleReader
from saefast.lm import builtin_corpus
from saefast.types import brief

LEAST_SCORE = 0.6
"""Minimum score on known features of a judge whose scores are used"""

_DOCUMENTS = 48
_TOKENS = 256  # of each document
_CALIBRATION = 0xCA11  # separates these random numbers from other uses of a seed
_WINDOWS = 4  # in which a feature fires, and as many in which it is silent
_SHAPES = (
    *("a number", "punctuation", "white space"),
    *("a token that begins with a capital letter", "a token in capital letters"),
)
_TOKENS_ALONE = (
    *("the", "of", "and", "to", "in", "is", "for", "a", "not", "if", "return", "def", "class"),
    *("import", "self", "none", "true", "or", "with", "file", "string", "error"),
)
_AFFIXES = ("*ing", "*ed", "*tion", "*er", "*ly", "re*", "un*", "con*")
_AFTER = ("the", "def", "import", "self", ".", "of")
_CLASSES = ("comment", "string", "number", "keyword", "operator")

KNOWN_RULES = (
    *(Rule("shape", (shape,)) for shape in _SHAPES),
    *(Rule("token", (token,)) for token in _TOKENS_ALONE),
    *(Rule("affix", (affix,)) for affix in _AFFIXES),
    *(Rule("previous", (token,)) for token in _AFTER),
    *(Rule("class", (name,)) for name in _CLASSES),
)
"""Rules that define the known features; rules that hold too rarely or too often are left out"""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scores of a judge with right and with swapped explanations of known features."""

    judge: str
    """name of the judge"""
    features: int
    """number of known features"""
    right: float
    """balanced accuracy with the right explanations; AUROC for a judge without a threshold"""
    swapped: float
    """the same measure with the explanations of other features"""
    auroc: float
    """AUROC over all windows with the right explanations"""
    unparsed: float
    """share of answers that could not be parsed"""

    __repr__ = brief

    @property
    def able(self) -> bool:
        """Whether the judge's scores can be used."""
        return self.right >= LEAST_SCORE

    @property
    def line(self) -> str:
        """The result as a sentence."""
        measured = (
            f"judge {self.judge} on {self.features} features with a known explanation: "
            f"{self.right:.2f} with right explanations, {self.swapped:.2f} with swapped ones, "
            f"AUROC {self.auroc:.2f}, {self.unparsed:.0%} of the answers not parsed"
        )
        if self.able:
            return measured
        return (
            f"{measured}; below {LEAST_SCORE} a judge cannot tell right explanations from wrong "
            f"ones, and its scores are withheld"
        )


class KnownQuestions(NamedTuple):
    """Questions on known features; both lists ask about the same windows."""

    right: list[Question]
    """questions with the right explanations"""
    swapped: list[Question]
    """questions with the explanations of other features"""
    labels: NDArray[np.bool_]
    """[questions] whether the feature fires in the window"""
    feature: NDArray[np.int64]
    """[questions] index of the feature"""


def calibrate(judge: Judge, tokenizer: Any, *, seed: int = 0) -> Calibration:
    """Let a judge rate explanations of features of the built-in text that rules define.

    For each feature the judge rates the right explanation and the explanation of another feature,
    on four windows in which the feature fires and four in which it is silent.

    Args:
        judge: judge to calibrate.
        tokenizer: tokenizer for the built-in text.
        seed: seed of the choice of windows.

    Returns:
        The judge's scores.
    """
    known = known_questions(tokenizer, seed)
    ratings = judge.rate([*known.right, *known.swapped])
    halves = np.split(ratings, 2)
    scores = [
        np.mean([score(judge, known.labels[its], half[its]) for its in _each(known.feature)])
        for half in halves
    ]
    return Calibration(
        judge=judge.name,
        features=len(_each(known.feature)),
        right=float(scores[0]),
        swapped=float(scores[1]),
        auroc=area(known.labels, halves[0]),
        unparsed=float(np.isnan(ratings).mean()),
    )


def known_questions(tokenizer: Any, seed: int = 0) -> KnownQuestions:
    """Build questions on whether features that rules define fire in windows of the built-in text.

    Args:
        tokenizer: tokenizer for the text.
        seed: seed of the choice of windows.

    Returns:
        Questions with right and with swapped explanations, with their labels.
    """
    text = _text(tokenizer)
    reader = RuleReader(text)
    generator = np.random.default_rng([_CALIBRATION, seed])
    starts, full = text.window_starts, np.flatnonzero(text.full)
    chosen: list[tuple[Rule, list[Window], list[bool]]] = []
    for rule in KNOWN_RULES:
        holds = reader.holds(rule)
        fires = np.add.reduceat(holds, starts[:-1])[full] > 0
        if min(fires.sum(), (~fires).sum()) < _WINDOWS:
            continue
        windows = []
        for side in (full[fires], full[~fires]):
            for number in np.sort(generator.choice(side, _WINDOWS, replace=False)).tolist():
                first, end = int(starts[number]), int(starts[number + 1])
                windows.append(Window(text, first, end, holds[first:end].astype(np.float32)))
        # The order is random because a judge may see several windows at once, which must not all
        # be of one kind.
        order = generator.permutation(2 * _WINDOWS).tolist()
        chosen.append((rule, [windows[at] for at in order], [at < _WINDOWS for at in order]))
    rules = [Explanation(rule.text, rule) for rule, _, _ in chosen]
    others = rules[len(rules) // 2 :] + rules[: len(rules) // 2]
    right, swapped = (
        [
            Question(explanation, window)
            for explanation, (_, windows, _) in zip(each, chosen, strict=True)
            for window in windows
        ]
        for each in (rules, others)
    )
    return KnownQuestions(
        right,
        swapped,
        np.array([label for _, _, labels in chosen for label in labels], dtype=bool),
        np.repeat(np.arange(len(chosen)), 2 * _WINDOWS),
    )


def _text(tokenizer: Any) -> TokenText:
    sequences = []
    for document in _documents():
        ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if ids:
            sequences.append(list(ids[:_TOKENS]))
    return text_of_sequences(sequences, tokenizer)


@cache
def _documents() -> tuple[str, ...]:
    code = builtin_corpus(("code",)).held_out()
    return tuple(document.text for document in islice(code, _DOCUMENTS))


def _each(feature: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    return [feature == number for number in np.unique(feature)]
