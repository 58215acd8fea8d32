"""A number beside what chance gives: means, bands and p-values of draws, each from its own seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class NullTest:
    """A number beside what a null gives."""

    null: str
    statistic: str
    """what number it is"""
    value: float
    """what was observed"""
    mean: float
    """under the null"""
    sd: float | None = None
    """under the null; None after a single draw"""
    low: float | None = None
    """where the band of the null's draws begins; None for fewer than two draws"""
    high: float | None = None
    p: float | None = None
    """(1 + draws at least as extreme) / (1 + draws). Overlaps and what is explained are extreme
    when large, ranks when small"""
    draws: int
    """0 for a formula"""


def beside(
    null: str,
    statistic: str,
    value: float,
    drawn: Sequence[float],
    band: float,
    small_is_extreme: bool = False,
) -> NullTest:
    """A number beside those that a null gave."""
    values = torch.tensor(drawn, dtype=torch.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return NullTest(null=null, statistic=statistic, value=value, mean=mean, draws=len(values))
    extreme = values <= value if small_is_extreme else values >= value
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
    """Below and above which shares of the draws a band ends."""
    return (1 - band) / 2, (1 + band) / 2


def generator_of(seed: int, *key: str | int) -> torch.Generator:
    """Random numbers that depend on the seed and a key, and on nothing else that is drawn."""
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
