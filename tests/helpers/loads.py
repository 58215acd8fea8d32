"""Recording of the language models that are loaded, and of their devices."""

from pathlib import Path
from typing import Any

import pytest
import torch

from saefast import checks, lm
from saefast.pipeline import judges


def record_loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Load models on the CPU, whatever device is asked for, and take every device for available.

    Returns:
        File names and devices of the models that are loaded, in order; filled by later loads.
    """
    asked: list[tuple[str, str]] = []
    load = lm.load_model

    def recorded(name: str, *, device: Any = "cpu", **options: Any) -> lm.LanguageModel:
        asked.append((Path(name).name, str(device)))
        return load(name, **options)

    monkeypatch.setattr(lm, "load_model", recorded)
    monkeypatch.setattr(judges, "load_model", recorded)
    monkeypatch.setattr(checks, "device_here", lambda _, value: torch.device(value))
    return asked
