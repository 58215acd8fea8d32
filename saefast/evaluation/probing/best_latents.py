"""Tests on the best latents of tasks: their share in a group and their agreement between seeds."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.sae import SAE, UP_TO_SIGN


def agreement(
    saes: Sequence[SAE], best: Sequence[Sequence[int]], random: Sequence[Sequence[Tensor]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure how often the best latents of a task in two SAEs are matched to each other.

    Two latents are matched if the decoder row of each is the other's nearest by cosine, or by
    absolute cosine if one of the SAEs is of a variant in `UP_TO_SIGN`.

    Args:
        saes: the SAEs.
        best: for each SAE the best latent of each task.
        random: for each SAE and task [draws] random latents of similar activity.

    Returns:
        [pairs, tasks] 0 or 1, and [pairs, tasks] means over the draws of random latents.
    """
    found, chance = [], []
    for a, b in combinations(range(len(saes)), 2):
        rows = _unit(saes[a]), _unit(saes[b])
        absolute = any(saes[each].variant in UP_TO_SIGN for each in (a, b))
        matched = partial(_matched, *rows, absolute)
        found.append(matched(torch.tensor(best[a]), torch.tensor(best[b])))
        drawn = zip(random[a], random[b], strict=True)
        chance.append([matched(x, y).mean() for x, y in drawn])
    return np.array(found, dtype=np.float64), np.array(chance, dtype=np.float64)


def _unit(sae: SAE) -> Tensor:
    rows = sae.W_dec.detach().double().cpu()
    return torch.nn.functional.normalize(rows, dim=1)


def _matched(
    a: Tensor, b: Tensor, absolute: bool, first: Tensor, second: Tensor
) -> NDArray[np.float64]:
    """Return 1 for each pair of latents that are mutually nearest, else 0; NaN without a latent."""
    known = (first >= 0) & (second >= 0)
    x, y = first.clamp(min=0), second.clamp(min=0)
    there, back = a[x] @ b.T, b[y] @ a.T
    if absolute:
        there, back = there.abs(), back.abs()
    forward, backward = there.argmax(1) == y, back.argmax(1) == x
    return np.where(known.numpy(), (forward & backward).double().numpy(), np.nan)


def hypergeometric_tail(hits: int, drawn: int, marked: int, total: int) -> float:
    """Return the probability of at least `hits` marked items among `drawn` of `total`.

    Args:
        hits: number of marked items among the drawn.
        drawn: number of items drawn without replacement.
        marked: number of marked items.
        total: number of items.
    """
    most = min(drawn, marked)
    ways = [
        _log_choose(marked, n) + _log_choose(total - marked, drawn - n)
        for n in range(hits, most + 1)
        if drawn - n <= total - marked
    ]
    whole = _log_choose(total, drawn)
    return min(1.0, math.fsum(math.exp(way - whole) for way in ways))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
