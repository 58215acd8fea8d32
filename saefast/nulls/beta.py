"""Cumulative distribution function and quantiles of the Beta distribution in float64."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_TINY = 1e-300
_CLOSE = 1e-15
_MOST_TERMS = 100_000
_PARTS, _ROUNDS = 32, 14  # the search for an angle ends at 2^-70 of the initial interval
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def beta_cdf(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> Floats:
    """Compute P(X <= x) for X ~ Beta(a, b), the regularised incomplete beta function.

    Args:
        x: numbers from 0 to 1; all arguments are broadcast.
        a: positive numbers.
        b: positive numbers.

    Returns:
        Probabilities in float64, with a relative error of about 1e-15 * (a + b) for small values.
    """
    point, first, second = (np.asarray(value, np.float64) for value in (x, a, b))
    log_scale = _log_gamma(first + second) - _log_gamma(first) - _log_gamma(second)
    point, first, second = np.broadcast_arrays(point, first, second)
    # The fraction converges quickly only below the mean; above it the other tail is computed.
    low = point < (first + 1) / (first + second + 2)
    tail = _tail(
        np.where(low, point, 1 - point),
        np.where(low, first, second),
        np.where(low, second, first),
        log_scale,
    )
    result: Floats = np.where(low, tail, 1 - tail)
    return result


def beta_quantile(share: ArrayLike, a: ArrayLike, b: ArrayLike) -> Floats:
    """Compute the x with P(X <= x) = share for X ~ Beta(a, b); arguments are broadcast.

    The search is over the angle in x = sin(angle)^2, which resolves both ends evenly: the result is
    accurate to the last digits for a of at least 1/2 and shares down to a millionth.

    Args:
        share: probabilities from 0 to 1.
        a: positive numbers.
        b: positive numbers.

    Returns:
        Quantiles in float64.
    """
    wanted, first, second = (np.asarray(value, np.float64) for value in (share, a, b))
    wanted, first, second = (v[..., None] for v in np.broadcast_arrays(wanted, first, second))
    below = np.zeros(wanted.shape)
    width = math.pi / 2
    for _ in range(_ROUNDS):
        width /= _PARTS
        angle = below + width * np.arange(1, _PARTS)
        less = beta_cdf(np.sin(angle) ** 2, first, second) < wanted
        below = below + width * less.sum(-1, keepdims=True)
    quantile: Floats = np.sin(below[..., 0] + width / 2) ** 2
    return quantile


def _tail(x: Floats, a: Floats, b: Floats, log_scale: Floats) -> Floats:
    """Compute `beta_cdf` for x below the mean from its continued fraction, by Lentz's method."""
    with np.errstate(divide="ignore"):
        log_power = a * np.log(x) + b * np.log1p(-x) + log_scale
    c = np.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d.copy()
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = np.ones_like(x)
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            step = c * d
            fraction *= step
        if bool((np.abs(step - 1) <= _CLOSE).all()):
            break
    result: Floats = np.exp(log_power) * fraction / a
    return result


def _away_from_zero(values: Floats) -> Floats:
    result: Floats = np.where(np.abs(values) < _TINY, _TINY, values)
    return result
