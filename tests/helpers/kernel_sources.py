"""The kernels that the files in kernels/ launch, according to their source."""

import re

from helpers.checkout import CHECKOUT

_KERNELS = CHECKOUT / "kernels"


def kernels_in_source() -> set[str]:
    """Return the names of all kernels that are launched anywhere in kernels/."""
    names: set[str] = set()
    for file in _KERNELS.rglob("*.py"):
        names |= set(re.findall(r"(?:^|\s|\.)(\w+)\[\(", file.read_text()))
    assert names
    return names
