"""Choose the engine and product that screen an encode on a GPU: by request, rule or timing.

An exact result does not depend on the engine and product that screen it, so the fastest is found by
timing them on the first batch of a shape. With `precision="bf16"` the values come from the product
itself; there the engine is fixed, so that runs are bitwise reproducible.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saefast.ops import gpu

ENVIRONMENT = "SAEFAST_GPU_SCREEN"
_ROUNDS = 3


class GpuScreen(NamedTuple):
    """An engine and the product it screens with."""

    engine: str
    """chunked or fused"""
    product: str
    """float16, bfloat16, tfloat32 or float32"""

    def __str__(self) -> str:
        return f"{self.engine}-{self.product}"


CANDIDATES = (
    GpuScreen("fused", "float16"),
    GpuScreen("chunked", "bfloat16"),
    GpuScreen("chunked", "tfloat32"),
)
"""Screens that are timed for an exact encode. On an H100 the first is the fastest at all measured
sizes; on GPUs that cannot load tiles by descriptor cuBLAS may be faster."""
_ROUNDED = GpuScreen("fused", "bfloat16")
_LAST = GpuScreen("chunked", "float32")
"""Screen for rows so wide and k so large that TF32 leaves more columns in doubt than a list
holds."""
SCREENS = (*CANDIDATES, _ROUNDED, _LAST)
"""Screens that the environment variable may select."""

skipped: dict[str, str] = {}
"""Screens that failed when they were timed in this process, with the reasons; shown by
`build_info`."""


def asked_for() -> GpuScreen | None:
    """Return the screen selected by the environment variable, or None for "auto"."""
    chosen = os.environ.get(ENVIRONMENT, "auto")
    by_name = {str(screen): screen for screen in SCREENS}
    if chosen not in ("auto", *by_name):
        raise ValueError(
            f"{ENVIRONMENT} must be auto or one of {', '.join(by_name)}, got {chosen!r}"
        )
    return by_name.get(chosen)


def untimed(*, exact: bool) -> GpuScreen:
    """Return the screen to use without timing: the selected one, or the fastest on an H100.

    If the result is not exact, its values come from a product in bfloat16, whichever engine
    computes it.
    """
    chosen = asked_for()
    if exact:
        return chosen or CANDIDATES[0]
    return _ROUNDED._replace(engine=chosen.engine) if chosen else _ROUNDED


def candidates_for(fits: Callable[[str], bool]) -> tuple[GpuScreen, ...]:
    """Return the screens whose product `fits`: leaves no more columns in doubt than a list holds.

    If lists are too short, every row is scored in full, which takes seconds.
    """
    return tuple(screen for screen in CANDIDATES if fits(screen.product)) or (_LAST,)


def fastest(
    milliseconds: Callable[[GpuScreen], float], candidates: Sequence[GpuScreen], where: str
) -> GpuScreen:
    """Return the candidate with the least time by `milliseconds`; the first round only compiles.

    A candidate that raises is skipped, with one warning per process. If all candidates raise, a
    RuntimeError states the reasons. `where` describes the encode in both messages.
    """
    reasons: dict[GpuScreen, str] = {}
    times: dict[GpuScreen, float] = {}
    for number in range(1 + _ROUNDS):
        for screen in candidates:
            if screen in reasons:
                continue
            try:
                taken = milliseconds(screen)
            except gpu.kernels("device").LAUNCH_FAILURES as error:
                reasons[screen] = f"{type(error).__name__}: {error}"
                times.pop(screen, None)
                # The frames of the traceback would keep large tensors alive.
                last = error.with_traceback(None)
            else:
                if number > 0:
                    times[screen] = min(taken, times.get(screen, math.inf))
    for screen, reason in reasons.items():
        if str(screen) not in skipped:
            warnings.warn(
                f"the screen {screen} failed for {where} and is not used: {reason}", stacklevel=2
            )
        skipped[str(screen)] = f"{where}: {reason}"
    if not times:
        everything = "; ".join(f"{screen}: {reason}" for screen, reason in reasons.items())
        raise RuntimeError(f"no screen works for {where}: {everything}") from last
    return min(times, key=lambda screen: times[screen])
