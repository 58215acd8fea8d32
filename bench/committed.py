"""Committed results, and tables of Markdown made from them."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def load(case: str) -> dict[str, Any]:
    """Return the committed results of a case."""
    result: dict[str, Any] = json.loads((RESULTS / f"{case}.json").read_text())
    return result


def gpus() -> list[str]:
    """Return the names of the results of GPUs: one file for each device."""
    return sorted(file.stem for file in RESULTS.glob("gpu*.json"))


def gpu_name(device: str) -> str:
    """Return the name of the results of a device, such as "gpu-h200" if there are none yet."""
    names = {load(name)["machine"]["device"]: name for name in gpus()}
    return names.get(device, f"gpu-{short_name(device).lower()}".replace(" ", "-"))


def short_name(device: str) -> str:
    """Return the first word of a device's name that has a digit, such as H100, else the name."""
    found = re.search(r"[A-Za-z]*\d\w*", device)
    return found[0] if found else device


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown, a line for each sequence of cells."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
