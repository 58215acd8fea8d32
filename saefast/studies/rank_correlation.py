"""Rank correlations of two measures."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DRAWS = 2000
_TAIL = 0.025


def spearman_interval(pairs: Floats, seed: int) -> tuple[float, float, float]:
    """Return Spearman's correlation of pairs [n, 2] and the ends of its bootstrap interval."""
    generator = np.random.default_rng(seed)
    if not len(pairs):
        return (float("nan"),) * 3
    chosen = generator.integers(len(pairs), size=(_DRAWS, len(pairs)))
    drawn = np.array([spearman(pairs[its]) for its in chosen])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return (float("nan"),) * 3
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return spearman(pairs), float(low), float(high)


def spearman(pairs: Floats) -> float:
    """Return Spearman's rank correlation of pairs [n, 2]; NaN where one side is constant."""
    ranks = np.stack([_ranked(side) for side in pairs.T])
    ranks -= ranks.mean(1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(1).prod())
    return float(ranks.prod(0).sum() / scale) if scale > 0 else float("nan")


def _ranked(values: Floats) -> Floats:
    """Ranks [n] from 0; equal values have the mean of theirs."""
    below = (values[None] < values[:, None]).sum(1)
    same = (values[None] == values[:, None]).sum(1)
    ranks: Floats = below + (same - 1) / 2
    return ranks


def kendall(pairs: Floats) -> float:
    """Return Kendall's tau-b of pairs [n, 2]; NaN where one side is constant."""
    signs = [np.sign(side[:, None] - side[None]) for side in pairs.T]
    scale = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float((signs[0] * signs[1]).sum() / scale) if scale > 0 else float("nan")
