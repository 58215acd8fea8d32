"""newcomer: seconds from a clone to a first result, and to the report of the demo.

`python -m bench newcomer --json FILE`. The commands are the README's, in a fresh clone of this
checkout, without variables of Python and without pip's cache.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import record

_CHECKOUT = Path(__file__).resolve().parent.parent
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
"""Variables of the environment that a clone starts with, beside pip's own."""
_PARTS = {
    "clone": "git clone --quiet {checkout} {clone}",
    "install": "make --silent .venv/demo",
    "quick": ".venv/bin/saefast demo --quick --out {clone}/quick",
    "demo": "make --silent demo",
}


def main(arguments: list[str]) -> int:
    """Run the commands one after the other in a new clone, and write their seconds."""
    parser = argparse.ArgumentParser(prog="python -m bench newcomer", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    chosen = parser.parse_args(arguments)
    commit = record.commit()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder) / "clone")
    if chosen.json:
        record.write(chosen.json, {"machine": record.machine(), "commit": commit, "rows": rows})
    return 0


def measured(clone: Path) -> list[dict[str, Any]]:
    """Run each command, and return a row for each.

    Args:
        clone: folder to clone this checkout into.

    Returns:
        Rows with the command, its seconds, the processor time that it used, and the number of
        processors that other work used meanwhile.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    rows = []
    for part, template in _PARTS.items():
        command = template.format(checkout=_CHECKOUT, clone=clone)
        others, own, start = _used_by_others(), _used(), time.perf_counter()
        subprocess.run(
            command.split(),
            cwd=clone if part != "clone" else clone.parent,
            env=kept | pip | {"PIP_NO_CACHE_DIR": "1"},
            check=True,
        )
        seconds = time.perf_counter() - start
        rows.append(
            {
                "part": part,
                "command": template,
                "seconds": round(seconds, 1),
                "processor_seconds": round(_used() - own, 1),
                "processors_of_others": round((_used_by_others() - others) / seconds, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _used() -> float:
    """Return the seconds of processors that this process and its ended children used."""
    return sum(os.times()[:4])


def _used_by_others() -> float:
    """Return the seconds of processors that all other processes used since the machine started."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - _used()
