"""Processes of workers, found in /proc."""

from pathlib import Path


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(name) for name in path.read_text().split()] if path.exists() else []


def is_worker(pid: int) -> bool:
    try:
        return b"saefast.sweep.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
