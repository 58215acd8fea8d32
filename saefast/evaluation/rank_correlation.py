"""Rank correlations with bootstrap intervals."""

import numpy as np

from saefast.evaluation.intervals import DRAWS, NOWHERE, Floats, Interval

_TAIL = 0.025


def ranks(values: Floats) -> Floats:
    """Return ranks [..., n] from 0; equal values share the mean of theirs."""
    shared: Floats = (_signs(values).sum(-1) + values.shape[-1] - 1) / 2
    return shared


def pearson(a: Floats, b: Floats) -> Floats:
    """Return the correlation of a [..., n] and b [..., n]; NaN where one of them is constant."""
    a, b = (each - each.mean(-1, keepdims=True) for each in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return _quotient((a * b).sum(-1), scale, 1e-12 * a.shape[-1])


def spearman(a: Floats, b: Floats) -> Floats:
    """Return the correlation of the ranks of a [..., n] and b [..., n]."""
    return pearson(ranks(a), ranks(b))


def spearman_interval(a: Floats, b: Floats, *, seed: int = 0) -> Interval:
    """Return Spearman's correlation of a [n] and b [n] with its bootstrap interval over pairs."""
    if not len(a):
        return NOWHERE
    chosen = np.random.default_rng(seed).integers(len(a), size=(DRAWS, len(a)))
    drawn = spearman(a[chosen], b[chosen])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return NOWHERE
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return Interval(float(spearman(a, b)), float(low), float(high))


def kendall(a: Floats, b: Floats) -> Floats:
    """Return tau b of a [..., n] and b [..., n]: Kendall's correlation, corrected for ties."""
    first, second = _signs(a), _signs(b)
    scale = np.sqrt((first * first).sum((-2, -1)) * (second * second).sum((-2, -1)))
    return _quotient((first * second).sum((-2, -1)), scale, 0.0)


def _signs(values: Floats) -> Floats:
    """Return the sign of the difference of each pair of values, [..., n, n]."""
    signs: Floats = np.sign(values[..., :, None] - values[..., None, :])
    return signs


def _quotient(above: Floats, below: Floats, least: float) -> Floats:
    """Return the quotient, NaN where the divisor is not above `least`."""
    known = below > least
    return np.where(known, above / np.where(known, below, 1.0), np.nan)
