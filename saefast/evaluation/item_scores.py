"""Scores of measures over items such as words or contexts, without a score for each item."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from saefast.evaluation.condition_scores import scores_by_condition
from saefast.evaluation.intervals import UNLIMITED, Limits
from saefast.evaluation.scores import Score


def scores_of_items(
    evaluation: str,
    measure: str,
    values: Mapping[str, ArrayLike],
    *,
    floor: ArrayLike = float("nan"),
    ceiling: float = float("nan"),
    rivals: Sequence[str] = (),
    limits: Limits = UNLIMITED,
    primary: bool = False,
    seed: int = 0,
) -> list[Score]:
    """Build the scores of one measure: overall, of each SAE, and differences to the trained ones.

    Args:
        evaluation: name of the evaluation.
        measure: name of the measure.
        values: by condition, [seeds, items] with the same items in all.
        floor: value without information, one or [items].
        ceiling: upper bound or best attainable value.
        rivals: conditions of which the best becomes the rival of every other.
        limits: smallest and largest possible value, beyond which no interval extends.
        primary: whether the measure is the primary one of its evaluation.
        seed: seed of the bootstrap over seeds and items.

    Returns:
        Scores as in `scores_by_condition`, without scores of single items.
    """
    items = np.shape(next(iter(values.values())))[1]
    scores = scores_by_condition(
        evaluation,
        measure,
        values,
        [""] * items,
        floor=floor,
        ceiling=ceiling,
        rivals=rivals,
        limits=limits,
        primary=primary,
        seed=seed,
    )
    # Drop the scores of single items, which are over one item each.
    return [score for score in scores if score.n > 1 or score.seed is None]


def ratio_values(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """Return values [..., items] whose mean is the ratio of the sums over items.

    Their variance equals the variance of the ratio to first order, so that intervals of means
    apply to ratios.

    Args:
        above: [..., items] numerator of each item.
        below: [..., items] denominator of each item.

    Returns:
        [..., items] float64.
    """
    top, bottom = (np.asarray(part, dtype=np.float64) for part in (above, below))
    mean = bottom.mean(-1, keepdims=True)
    ratio = top.mean(-1, keepdims=True) / mean
    values: np.ndarray = ratio + (top - ratio * bottom) / mean
    return values
