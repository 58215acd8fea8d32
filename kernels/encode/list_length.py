"""Derive the length of an exact screen's lists from the number of columns left in doubt."""

from statistics import NormalDist

from ..device import power_of_two
from .lists import block

LONGEST = 8192
"""maximum length of a list that the shared memory of a block holds, MOST_CAPACITY in
csrc/cuda/select.h"""
_LOST = {"bfloat16": 1.6e-3, "float16": 2e-4, "tfloat32": 2e-4, "float32": 0.0}
"""norm of the rounding error of a row of Gaussian numbers, relative to the row's norm;
slightly more than measured"""
_DEVIATIONS = 4.3
"""standard deviations above its expectation that a count is allowed: exceeded by one row of
100,000"""
_NORMAL = NormalDist()


def arithmetic_error(d: int) -> float:
    """Bound the error of a sum of d products, relative to the product of the operands' norms.

    Twice the rounding of each of at most 1.1 d additions, since tensor cores may truncate; see
    docs/concepts/exact_screening.md.

    Returns:
        The relative error.
    """
    return 2.5 * (d + 32) * 2.0**-24


def most_candidates(m: int, d: int, k: int, product: str) -> int:
    """Return an upper estimate of the number of columns that a screen keeps per row.

    Assume that the m scores of a row are Gaussian. A score x . w has standard deviation |x| |w| /
    sqrt(d) if directions are independent, and differs from its screening product by at most e = (2
    lost + arithmetic error) |x| |w|. A column is kept if its product + e exceeds the floor, which k
    scores certainly reach: the k-th largest product - e. So a column is a candidate if its product
    is at most 2 e below the k-th largest product, which in standard deviations is

        width = 2 sqrt(d) (2 lost + arithmetic error).

    Let Q be the upper tail probability of the normal distribution, and z the position of the k-th
    largest product. Then m Q(z) has the Gamma distribution of shape k: its mean is k, and its upper
    quantile at t standard deviations is about k + t sqrt(k) + t^2 / 3. Floors are raised until at
    most k + k / 4 scores certainly reach them, so k + k / 4 replaces k here. Given z, the number of
    candidates is Poisson distributed with mean m Q(z - width). The squares of the two deviations
    are added.

    Args:
        m: number of latents.
        d: width.
        k: number of active latents per row.
        product: float16, bfloat16, tfloat32 or float32.
    """
    t = _DEVIATIONS
    shape = k + k // 4
    width = 2 * d**0.5 * (2 * _LOST[product] + arithmetic_error(d))
    expected = _below(m, shape, width)
    by_place = _below(m, shape + t * shape**0.5 + t * t / 3, width) - expected
    return min(m, int(expected + (by_place**2 + t * t * expected) ** 0.5) + 1)


def _below(m: int, above: float, width: float) -> float:
    """Return how many of m normal numbers exceed a bar `width` below the `above`-th largest."""
    if above >= m:
        return m
    return m * _NORMAL.cdf(width - _NORMAL.inv_cdf(1 - above / m))


def list_length(m: int, d: int, k: int, product: str, incoming: int) -> int:
    """Return the capacity of an exact screen's lists.

    It holds `most_candidates` columns and those that arrive at once; at least the smaller of 8 k
    and 3072, for scores that are not Gaussian; at most `LONGEST`. Rows whose lists are too short
    are scored in full, so the capacity affects the time, not the result.

    Args:
        m: number of latents.
        d: width.
        k: number of active latents per row.
        product: float16, bfloat16, tfloat32 or float32.
        incoming: columns that may be appended before a list is cut.

    Returns:
        A power of two.
    """
    candidates = max(most_candidates(m, d, k, product), min(8 * k, 3072))
    return min(power_of_two(candidates + incoming), LONGEST)


def fits(m: int, d: int, k: int, product: str) -> bool:
    """Return whether lists of an exact screen can be long enough for Gaussian scores."""
    return most_candidates(m, d, k, product) + block() <= LONGEST
