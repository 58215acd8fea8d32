"""Comparison of values with null distributions: means, bands and p-values of draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch

_ROUNDING = 1e-9
"""Tolerance of comparisons with draws, relative to the value where that exceeds 1: draws that equal
the value but for rounding are as extreme"""


@dataclass(frozen=True, kw_only=True)
class NullTest:
    """Comparison of an observed value with its distribution under a null."""

    null: str
    """name of the null"""
    statistic: str
    """name of the statistic"""
    value: float
    """observed value"""
    mean: float
    """mean under the null"""
    sd: float | None = None
    """standard deviation under the null; None for a single draw"""
    low: float | None = None
    """lower end of the band of the draws; None for fewer than two draws"""
    high: float | None = None
    """upper end of the band of the draws; None for fewer than two draws"""
    p: float | None = None
    """(1 + number of draws at least as extreme) / (1 + number of draws); None for fewer than two
    draws. Large overlaps, captures and contributions are extreme, and small ranks"""
    draws: int
    """number of draws; 0 for a formula"""


def beside(
    null: str,
    statistic: str,
    value: float,
    drawn: Sequence[float],
    band: float,
    small_is_extreme: bool = False,
) -> NullTest:
    """Compare an observed value with values drawn under a null.

    Args:
        null: name of the null.
        statistic: name of the statistic.
        value: observed value.
        drawn: one or more values under the null.
        band: share of the draws between `low` and `high`.
        small_is_extreme: whether small values are extreme, instead of large ones.

    Returns:
        The comparison.
    """
    values = torch.tensor(drawn, dtype=torch.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return NullTest(null=null, statistic=statistic, value=value, mean=mean, draws=len(values))
    slack = _ROUNDING * max(abs(value), 1.0)
    extreme = values <= value + slack if small_is_extreme else values >= value - slack
    p = (1 + int(extreme.sum())) / (1 + len(values))
    low, high = values.quantile(values.new_tensor(ends(band))).tolist()
    return NullTest(
        null=null,
        statistic=statistic,
        value=value,
        mean=mean,
        sd=float(values.std()),
        low=low,
        high=high,
        p=p,
        draws=len(values),
    )


def ends(band: float) -> tuple[float, float]:
    """Return the probabilities of the quantiles at which a central band of the draws ends."""
    return (1 - band) / 2, (1 + band) / 2


def generator_of(seed: int, *key: str | int) -> torch.Generator:
    """Return a generator that depends on the seed and key alone, not on other draws."""
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
