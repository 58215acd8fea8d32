"""Supervised rival of SAEs: the axes along which mean activations of values differ."""

from collections.abc import Sequence

import torch

from saefast.evaluation.conditions import coordinates, signed
from saefast.evaluation.editing.interchange import Interchange
from saefast.evaluation.editing.pairs import Pair
from saefast.linalg import one_thread
from saefast.sae import SAE


def mean_differences(runs: Interchange, pairs: Sequence[Pair], like: SAE) -> SAE:
    """Return an SAE whose first latents are the coordinates in which means of values differ.

    The means are over the prompts of cause pairs. The first axes are the principal axes of the
    means, each mean weighted by its number of prompts; all means are equal along the other axes.

    Args:
        runs: model with its prompts.
        pairs: pairs for training.
        like: SAE with the width, dtype and device of the result.
    """
    prompts = sorted(
        {number for pair in pairs if pair.cause for number in (pair.base, pair.source)}
    )
    tokens = torch.tensor([runs.questions[number].token for number in prompts])
    rows = runs.rows[prompts].double().cpu()
    _, value, count = torch.unique(tokens, return_inverse=True, return_counts=True)
    with one_thread():
        sums = torch.zeros(len(count), rows.shape[1], dtype=torch.float64).index_add_(
            0, value, rows
        )
        weighted = (sums / count[:, None] - rows.mean(0)) * count[:, None].sqrt()
        axes = torch.linalg.svd(weighted, full_matrices=True).Vh
    return coordinates(like, rows, signed(axes))
