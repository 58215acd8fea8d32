"""Choose the engine and product that screen an encode on the CPU by measuring them once.

The result of an exact encode does not depend on the choice, only its speed does. The torch engine
is faster where torch supports instructions that saefast does not: AMX, or a vendor's library on a
processor without vector kernels of saefast.
"""

import os
import threading
import time
from typing import NamedTuple

import torch

from saefast.ops.cpu import native, threads
from saefast.ops.encode_cpu import Screen, encode_on_cpu

ENVIRONMENT = "SAEFAST_SCREEN"


class Measured(NamedTuple):
    """The fastest screen, and the milliseconds of a small encode with each screen."""

    best: Screen
    milliseconds: dict[str, float]
    """by name of the screen"""


_measured: dict[tuple[str, int], Measured] = {}
_lock = threading.Lock()


def usable_screens() -> list[Screen]:
    """Return the screens that can run on this processor."""
    screens = [Screen("native", "float32"), Screen("torch", "float32")]
    if native.has_int16_products():
        screens.append(Screen("native", "int16"))
    if native.has_bfloat16_products():
        screens.append(Screen("native", "bfloat16"))
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            screens.append(Screen("torch", "bfloat16"))
    return screens


def best_screen() -> Screen:
    """Return the screen for exact encodes: set by the environment, or the fastest measured."""
    chosen = os.environ.get(ENVIRONMENT, "auto")
    if chosen == "auto":
        return measure_screens().best
    by_name = {str(screen): screen for screen in usable_screens()}
    if chosen not in by_name:
        raise ValueError(
            f"{ENVIRONMENT} must be auto or one of {', '.join(by_name)} on this processor, got "
            f"{chosen!r}"
        )
    return by_name[chosen]


def screen_at(precision: str) -> Screen:
    """Return the screen for an encode; it is fixed for "bf16", whose values come from it."""
    return best_screen() if precision == "exact" else Screen("native", "bfloat16")


def measure_screens() -> Measured:
    """Time every usable screen on a small encode, once per process, level and thread count."""
    key = (native.level(), threads())
    with _lock:
        if key not in _measured:
            _measured[key] = _measure()
        return _measured[key]


def _measure() -> Measured:
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(192, 512, generator=generator, dtype=torch.float32, device="cpu")
    weight = torch.randn(4096, 512, generator=generator, dtype=torch.float32, device="cpu")

    def milliseconds(screen: Screen) -> float:
        start = time.perf_counter()
        encode_on_cpu(x, weight, None, None, 32, "exact", screen)
        return (time.perf_counter() - start) * 1e3

    screens = usable_screens()
    rounds = [[milliseconds(screen) for screen in screens] for _ in range(4)]
    best_times = [min(times) for times in zip(*rounds[1:], strict=True)]
    table = {str(screen): round(ms, 3) for screen, ms in zip(screens, best_times, strict=True)}
    return Measured(screens[best_times.index(min(best_times))], table)
