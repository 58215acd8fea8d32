"""Scores of values that items such as words or contexts have, which are not shown one by one."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from saefast.evaluation.scores import Score, measured


def scores_of_items(
    evaluation: str,
    measure: str,
    values: Mapping[str, ArrayLike],
    *,
    floor: ArrayLike = float("nan"),
    ceiling: float = float("nan"),
    rivals: Sequence[str] = (),
    primary: bool = False,
    seed: int = 0,
) -> list[Score]:
    """Build the scores of one measure: overall, of each SAE, and differences to the trained ones.

    Args:
        evaluation: its name.
        measure: its name.
        values: by condition, [seeds, items], the same items in all.
        floor: value without information, one or [items].
        ceiling: largest value that can be hoped for.
        rivals: conditions among which the best is named beside every other.
        primary: whether the measure is the primary one of its evaluation.
        seed: of the bootstrap over seeds and items.
    """
    items = np.shape(next(iter(values.values())))[1]
    scores = measured(
        evaluation,
        measure,
        values,
        [""] * items,
        floor=floor,
        ceiling=ceiling,
        rivals=rivals,
        primary=primary,
        seed=seed,
    )
    # Each item has a row of its own, which comes last and is over one item.
    return [score for score in scores if score.n > 1 or score.seed is None]


def ratio_values(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """Return values [..., items] whose mean is the ratio of the sums over items.

    Their variance is that of the ratio to first order, so that intervals of means serve ratios.

    Args:
        above: [..., items] numerator of each item.
        below: [..., items] its denominator.
    """
    top, bottom = (np.asarray(part, dtype=np.float64) for part in (above, below))
    mean = bottom.mean(-1, keepdims=True)
    ratio = top.mean(-1, keepdims=True) / mean
    values: np.ndarray = ratio + (top - ratio * bottom) / mean
    return values
