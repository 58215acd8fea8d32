"""Conditions of editing that learn from the values of attributes, unlike SAEs."""

from collections.abc import Sequence

from saefast.evaluation.conditions import DIFFMEAN, MDAS, coordinates
from saefast.evaluation.editing.facts import TRAIN
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.mean_differences import mean_differences
from saefast.evaluation.editing.one_attribute import Unit
from saefast.evaluation.editing.pairs import Task
from saefast.evaluation.editing.subspace import trained_subspace
from saefast.progress import ProgressBar
from saefast.sae import SAE


def supervised_units(
    runs: Interchange,
    task: Task,
    like: SAE,
    names: Sequence[str],
    *,
    seed: int,
    bar: ProgressBar,
) -> list[Unit]:
    """Build the units of one task: coordinates along axes of differences, or of a subspace.

    Args:
        runs: model with its prompts.
        task: attribute to edit, with its pairs.
        like: SAE with the width, dtype and device of the coordinates.
        names: `DIFFMEAN`, `MDAS`, both or none.
        seed: seed of the order of pairs.
        bar: progress bar that counts pairs.

    Returns:
        A unit for each of `names`.
    """
    if not names:
        return []
    pairs = task.pairs[TRAIN]
    means = mean_differences(runs, pairs, like)
    units = []
    if DIFFMEAN in names:
        units.append(Unit(DIFFMEAN, 0, Swap(means, runs.rows), {}))
    if MDAS in names:
        found = trained_subspace(runs, pairs, start=means.W_dec.detach(), seed=seed, bar=bar)
        axes = coordinates(like, runs.rows, found.axes)
        units.append(Unit(MDAS, 0, Swap(axes, runs.rows), {}, found.chosen))
    return units
