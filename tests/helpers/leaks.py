"""Memory, open files and temporary files of this process, as Linux counts them."""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GROWTH = 2 << 20
"""Bytes by which the memory may grow over the second half of a test"""


def resident() -> int:
    """Return the bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(seen: Sequence[int]) -> int:
    """Return by how much values grow over their second half."""
    half = seen[len(seen) // 2 :]
    return half[-1] - half[0]


class Left(NamedTuple):
    """Open and temporary files at one moment."""

    opened: Counter[str]
    """numbers of descriptors by the file that they lead to"""
    temporary: frozenset[str]
    """paths in the folder of temporary files that saefast may have made"""

    @classmethod
    def now(cls) -> "Left":
        """Return what is open and left at this moment."""
        opened: Counter[str] = Counter()
        for number in os.listdir("/proc/self/fd"):
            try:
                opened[os.readlink(f"/proc/self/fd/{number}")] += 1
            except FileNotFoundError:  # the descriptor of this listing
                continue
        folder = tempfile.gettempdir()
        names = os.listdir(folder) if os.path.isdir(folder) else []
        ours = (name for name in names if "saefast" in name or name.endswith(".part"))
        return cls(opened, frozenset(os.path.join(folder, name) for name in ours))

    def beyond(self, before: "Left") -> list[str]:
        """Return a line for each file that was not open or left before."""
        opened = [f"{path} is open" for path in (self.opened - before.opened).elements()]
        return opened + [f"{path} is left" for path in sorted(self.temporary - before.temporary)]
