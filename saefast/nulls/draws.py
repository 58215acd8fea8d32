"""Random sets of features to compare a set with: as many, or as active in sum."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.activations.order import permutation


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """Explained variance with a set of features alone (keep) and with all others (drop).

    Mean and standard deviation over the draws of a control; of a group itself, the value.
    """

    group: str
    control: str
    """"" for the group itself; else in what the random sets match it"""
    draws: int
    features: float
    keep: float
    keep_std: float
    drop: float
    drop_std: float
    shared: float
    """mean share of the group that is in the random sets; 1 for the group itself"""


def size_matched(mask: Tensor, mass: Tensor, seed: int, draw: int) -> Tensor:
    """[m] bool: as many random features as the mask has; only those that fire count and come."""
    alive = mass > 0
    chosen = _shuffled(alive, seed, draw)[: int((mask & alive).sum())]
    return torch.zeros_like(mask).index_fill(0, chosen, True)


def mass_matched(mask: Tensor, mass: Tensor, seed: int, draw: int) -> Tensor:
    """[m] bool: random features that fire as much in sum as those of the mask.

    They are taken in random order; one that would lead beyond is left out. So the sum falls short
    by less than the mass of any feature that was left out.
    """
    out = torch.zeros_like(mask)
    left = float(mass[mask].sum()) * (1 + 1e-12)  # the order of a sum must not decide
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
