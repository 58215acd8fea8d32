"""Random sets of features as controls of a set, matched in size or in activation mass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.activations.order import permutation


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """Explained variance with a set of features alone (keep) and with all others (drop).

    Values are means and standard deviations over the draws of a control, or those of the group.
    """

    group: str
    """name of the group"""
    control: str
    """empty for the group itself, else the property that the random sets match: "size" or
    "mass", the activation mass"""
    draws: int
    """number of random sets; 1 for the group itself"""
    features: float
    """mean number of features in a set"""
    keep: float
    """mean explained variance with the features of the set alone"""
    keep_std: float
    """standard deviation of `keep` over the draws"""
    drop: float
    """mean explained variance without the features of the set"""
    drop_std: float
    """standard deviation of `drop` over the draws"""
    shared: float
    """mean share of the group that is in the random sets; 1 for the group itself"""


def size_matched(mask: Tensor, mass: Tensor, seed: int, draw: int) -> Tensor:
    """Draw as many random features as the mask selects, [m] bool.

    Features with an activation mass of 0 are neither counted nor drawn.

    Returns:
        [m] bool, drawn features.
    """
    alive = mass > 0
    chosen = _shuffled(alive, seed, draw)[: int((mask & alive).sum())]
    return torch.zeros_like(mask).index_fill(0, chosen, True)


def mass_matched(mask: Tensor, mass: Tensor, seed: int, draw: int) -> Tensor:
    """Draw random features whose total activation mass equals the mask's, [m] bool.

    Features are added in random order, except those that would exceed the sum. So the sum falls
    short by less than the mass of any feature that was left out.

    Returns:
        [m] bool, drawn features.
    """
    out = torch.zeros_like(mask)
    left = float(mass[mask].sum()) * (1 + 1e-12)  # rounding of the sum must not matter
    order = _shuffled(mass > 0, seed, draw)
    while len(order):
        total = mass[order].cumsum(0)
        fitting = int((total <= left).sum())
        out[order[:fitting]] = True
        left -= float(total[fitting - 1]) if fitting else 0.0
        order = order[fitting + 1 :]
        order = order[mass[order] <= left]
    return out


def _shuffled(alive: Tensor, seed: int, draw: int) -> Tensor:
    places = alive.nonzero()[:, 0]
    return places[torch.from_numpy(permutation(len(places), seed, draw))]
