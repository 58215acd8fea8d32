"""Report the capabilities of this build on this machine."""

import importlib.metadata
import os
from typing import Any

import torch

from saefast.ops import gpu_screens
from saefast.ops.backends import why_not_live
from saefast.ops.cpu import native, threads
from saefast.ops.screens import ENVIRONMENT, best_screen, measure_screens


def build_info() -> dict[str, Any]:
    """Report version, instruction sets, screening engine and the state of every backend.

    Measures the screening engines if no encode has done so yet, which takes a fraction of a second.

    Returns:
        A dict that can be written as JSON. `backends` states for each backend whether it is usable,
        and if not, why.
    """
    return {
        "version": importlib.metadata.version("saefast"),
        "torch": torch.__version__,
        "isa": {
            "compiled": native.compiled_levels(),
            "usable": native.usable_levels(),
            "active": native.level(),
        },
        "openmp": native.openmp,
        "threads": threads(),
        "screen": {
            "chosen": str(best_screen()),
            "by": "measurement" if os.environ.get(ENVIRONMENT, "auto") == "auto" else ENVIRONMENT,
            "measured_ms": measure_screens().milliseconds,
        },
        "gpu_screen": {
            "by": "measurement" if gpu_screens.asked_for() is None else gpu_screens.ENVIRONMENT,
            "skipped": dict(gpu_screens.skipped),
        },
        "backends": {
            "reference": {"live": True},
            "cpp": {"live": True},
            **{impl: _state(why_not_live(impl)) for impl in ("triton", "cuda")},
        },
    }


def _state(reason: str | None) -> dict[str, Any]:
    return {"live": True} if reason is None else {"live": False, "why": reason}
