"""Scores of explanations from ratings of windows."""

import numpy as np
from numpy.typing import ArrayLike

from saefast.evaluation.explaining.judges.protocol import Floats, Judge
from saefast.evaluation.intervals import auroc

_YES = 0.5


def balanced_accuracy(labels: ArrayLike, ratings: Floats) -> float:
    """Return the mean of the shares of correct answers among positive and negative windows.

    An answer that could not be parsed counts half, as a guess would. NaN where a class is empty.

    Args:
        labels: [n] correct answers.
        ratings: [n] probabilities of yes; NaN for answers that could not be parsed.
    """
    truth = np.asarray(labels, dtype=bool)
    right = np.where(np.isnan(ratings), 0.5, (ratings > _YES) == truth)
    undecided = ratings == _YES
    right = np.where(undecided, 0.5, right)
    if truth.all() or not truth.any():
        return float("nan")
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def area(labels: ArrayLike, ratings: Floats) -> float:
    """Return the AUROC of the answers that could be parsed."""
    known = ~np.isnan(ratings)
    return auroc(np.asarray(labels, dtype=bool)[known], ratings[known])


def score(judge: Judge, labels: ArrayLike, ratings: Floats) -> float:
    """Return the balanced accuracy, or the AUROC of a judge whose ratings have no threshold."""
    accuracy = balanced_accuracy(labels, ratings)
    if not judge.graded or np.isnan(accuracy):
        return accuracy
    value = area(labels, ratings)
    return 0.5 if np.isnan(value) else value  # too few answers that could be parsed
