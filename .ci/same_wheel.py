"""Build the wheel twice, in two folders, and fail unless both have the same bytes.

python .ci/same_wheel.py SOURCE_DISTRIBUTION
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

_DATE = "1700000000"
"""Seconds since 1970 that SOURCE_DATE_EPOCH sets, by which both builds date their files"""


def built(source: Path, folder: Path) -> tuple[str, str]:
    """Build a wheel in a new folder; return its name and its SHA-256."""
    folder.mkdir()
    # Python 3.11.2, of Debian 12, has no filters yet, which later versions ask for.
    how: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(source) as archive:
        archive.extractall(folder, **how)
    (unpacked,) = folder.iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, unpacked]
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": _DATE})
    (wheel,) = folder.glob("*.whl")
    return wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest()


def main() -> int:
    """Compare two builds."""
    source = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        one, other = (built(source, Path(folder, name)) for name in ("one", "a longer name"))
    if one != other:
        print(f"two builds differ: {one} and {other}", file=sys.stderr)
        return 1
    print(f"two builds have the same bytes: {' '.join(one)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
