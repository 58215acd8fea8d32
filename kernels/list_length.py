"""How long the lists of an exact screen must be, from how much its product leaves in doubt."""

from statistics import NormalDist

from .device import power_of_two
from .lists import block

LONGEST = 8192
"""The longest list: what the shared memory of a block holds, MOST_CAPACITY in csrc/cuda/select.h"""
_LOST = {"bfloat16": 1.6e-3, "float16": 2e-4, "tfloat32": 2e-4, "float32": 0.0}
"""What rounding takes of the length of a row of Gaussian numbers, a little more than is measured"""
_DEVIATIONS = 4.3
"""How far above its expectation a count is allowed for: exceeded in one row of 100,000"""
_NORMAL = NormalDist()


def arithmetic_error(d: int) -> float:
    """How far a sum of d products can be off, in units of the lengths of its two operands.

    Twice the rounding of each of at most 1.1 d additions, where a tensor core truncates; see
    docs/concepts/exact_screening.md.
    """
    return 2.5 * (d + 32) * 2.0**-24


def most_candidates(m: int, d: int, k: int, product: str) -> int:
    """The columns that a screen keeps of a row at most, if its m scores are Gaussian.

    A score is x . w, of standard deviation |x| |w| / sqrt(d) for directions that are independent,
    and differs from its screening product by at most e = (2 lost + arithmetic error) |x| |w|. A
    column is kept where its product + e is above a floor that k scores are above for certain: the
    k-th largest product - e. So a column is a candidate where its product is at most 2 e below the
    k-th largest, which in standard deviations is

        width = 2 sqrt(d) (2 lost + arithmetic error).

    With Q the upper tail of the normal distribution and z the place of the k-th largest, m Q(z)
    has the Gamma distribution of shape k: its mean is k, its upper quantile at t deviations about
    k + t sqrt(k) + t^2 / 3. A floor is raised until at most k + k / 4 scores are certainly above
    it, which is what k stands for here. Given z, the candidates are Poisson with mean
    m Q(z - width). Deviations of the two add by their squares.
    """
    t = _DEVIATIONS
    shape = k + k // 4
    width = 2 * d**0.5 * (2 * _LOST[product] + arithmetic_error(d))
    expected = _below(m, shape, width)
    by_place = _below(m, shape + t * shape**0.5 + t * t / 3, width) - expected
    return min(m, int(expected + (by_place**2 + t * t * expected) ** 0.5) + 1)


def _below(m: int, above: float, width: float) -> float:
    """How many of m normal numbers are above what lies `width` below the `above`-th largest."""
    if above >= m:
        return m
    return m * _NORMAL.cdf(width - _NORMAL.inv_cdf(1 - above / m))


def list_length(m: int, d: int, k: int, product: str, incoming: int) -> int:
    """The capacity of lists of an exact screen: `most_candidates`, and as many as come in at once.

    At least 8 k, or 3072, for scores that are not Gaussian; at most `LONGEST`. Rows whose lists are
    too short are scored in full, so that this decides on the time alone.
    """
    candidates = max(most_candidates(m, d, k, product), min(8 * k, 3072))
    return min(power_of_two(candidates + incoming), LONGEST)


def fits(m: int, d: int, k: int, product: str) -> bool:
    """Whether lists of an exact screen can be long enough for Gaussian scores."""
    return most_candidates(m, d, k, product) + block() <= LONGEST
