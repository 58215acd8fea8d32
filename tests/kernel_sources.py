"""The kernels that the files in kernels/ launch, read off their source."""

import re
from pathlib import Path

_KERNELS = Path(__file__).resolve().parent.parent / "kernels"


def kernels_in_source() -> set[str]:
    """Return the names of all kernels that are launched anywhere in kernels/."""
    names: set[str] = set()
    for file in _KERNELS.glob("*.py"):
        names |= set(re.findall(r"(?:^|\s|\.)(\w+)\[\(", file.read_text()))
    assert names
    return names
