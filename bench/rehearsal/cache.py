"""Triton's cache of compiled kernels as a folder that can be copied to another machine."""

import json
from pathlib import Path


def relocate(folder: Path) -> int:
    """Adapt the entries of a cache folder to its current path; return their number.

    Triton lists the files of an entry by their absolute paths, and compiles again if one of them is
    missing.

    Returns:
        Number of adapted entries.
    """
    entries = list(folder.resolve().glob("*/__grp__*.json"))
    for entry in entries:
        group = json.loads(entry.read_text())
        paths = {name: str(entry.parent / name) for name in group["child_paths"]}
        entry.write_text(json.dumps({**group, "child_paths": paths}))
    return len(entries)
