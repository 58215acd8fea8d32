"""Scales of axes: positions of values, ticks, and the format of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """Map from values between `low` and `high` to positions from 0 to 1."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value, 0 at `low`, 1 at `high`; clipped beyond."""
        low, high, value = (self._as_drawn(each) for each in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Return round numbers within the scale."""
        if self.log:
            least, most = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, -(-(most - least) // _TICKS))
            return [10.0**power for power in range(least, most + 1, every)]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / _TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [round((first + i) * step, 12) for i in range(count)]

    def _as_drawn(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value


def covering(values: Sequence[float], *, zero: bool = True, log: bool = False) -> Scale:
    """Return a scale for all finite values, with a margin."""
    known = [value for value in values if math.isfinite(value) and (not log or value > 0)]
    if not known:
        return Scale(0.0, 1.0)
    low, high = min(known), max(known)
    if log:
        return Scale(low / 1.2, high * 1.2, log=True)
    air = 0.06 * ((high - min(low, 0.0) if zero else high - low) or abs(high) or 1.0)
    if zero:
        return Scale(low - air if low < 0 else 0.0, high + air if high > 0 else 0.0)
    return Scale(low - air, high + air)


def short(value: float) -> str:
    """Format a number in few characters."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}K"
    if size < 1e-3:
        power = math.floor(math.log10(size))
        times = value / 10.0**power
        return f"1e{power}" if math.isclose(times, 1) else f"{times:.2g}e{power}"
    return f"{value:.4g}"
