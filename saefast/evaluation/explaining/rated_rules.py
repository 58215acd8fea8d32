"""Scores of the rules of given latents, such as those to steer with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saefast.evaluation.explaining.contexts import TokenText
from saefast.evaluation.explaining.examples import MOST_MARKED, MOST_WINDOWS, scorable
from saefast.evaluation.explaining.explained import Explained
from saefast.evaluation.explaining.judges import Explanation, Judge, Question, Window
from saefast.evaluation.explaining.judging import TYPICAL, judge_all
from saefast.evaluation.explaining.sample import FeatureSample
from saefast.evaluation.scores import TRAINED

RATED = ("detection", "specificity", "fuzzing")
"""Measures of a rated rule, as in `explain`"""


def rated_rules(
    judge: Judge,
    subjects: Sequence[Explained],
    text: TokenText,
    latents: Sequence[Tensor],
    *,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """Let a judge rate the rules of given latents on the half of the text without their examples.

    Args:
        judge: judge that rates explanations.
        subjects: firings and rules of each SAE.
        text: text of the firings.
        latents: for each SAE the indices [f] of the latents.
        seed: seed of the choice of windows.

    Returns:
        By measure of `RATED`, for each SAE [m] float64; NaN for other latents, and for those that
        do not fire in both halves of the text.
    """
    samples = []
    for subject, chosen in zip(subjects, latents, strict=True):
        mask = np.zeros(subject.firings.m, dtype=bool)
        mask[chosen.numpy()] = True
        samples.append(FeatureSample(np.flatnonzero(mask & scorable(text, subject.firings)), {}))
    judged = judge_all(judge, {TRAINED: subjects}, text, {TRAINED: samples}, seed, rules_only=True)
    found: dict[str, list[Tensor]] = {measure: [] for measure in RATED}
    for subject, its in zip(subjects, judged[TRAINED], strict=True):
        for measure, columns in found.items():
            column = torch.full((subject.firings.m,), torch.nan, dtype=torch.float64)
            column[torch.from_numpy(its.latents)] = torch.from_numpy(its.values[measure])
            columns.append(column)
    return found


def typical_questions(text: TokenText, latents: int) -> list[Question]:
    """Return as many questions as `rated_rules` asks at most, of typical length, for estimates.

    Args:
        text: text of the windows.
        latents: number of latents to rate.
    """
    marks = np.zeros(1, dtype=np.int64)
    kinds = (
        ("own", MOST_WINDOWS, None),
        ("other", MOST_WINDOWS, None),
        ("marked", MOST_MARKED, marks),
    )
    starts = max(text.rows - text.size, 1)
    questions = []
    for latent in range(latents):
        for name, windows, its_marks in kinds:
            explanation = Explanation(f"{TYPICAL}{name} {latent}")
            for number in range(windows):
                first, end = number % starts, min(number % starts + text.size, text.rows)
                silent = Window(text, first, end, np.zeros(end - first, dtype=np.float32))
                questions.append(Question(explanation, silent, its_marks))
    return questions
