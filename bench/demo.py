"""demo: findings of `saefast demo`, and the time of each of its stages.

`python -m bench demo --json FILE`; `--run DIR` takes the folder of an earlier `saefast demo`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench import record
from saefast.pipeline import PRESETS, run_pipeline
from saefast.report import findings_of, printed


def main(arguments: list[str]) -> int:
    """Run the demo, or continue it, and write its findings."""
    parser = argparse.ArgumentParser(prog="python -m bench demo", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write machine, commit and findings to")
    parser.add_argument("--run", type=Path, help="folder of the run (default: a temporary one)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.run or Path(folder) / "demo"
        run_pipeline(
            PRESETS["demo"], run, resume=True, tell=lambda line: print(line, file=sys.stderr)
        )
        stages = json.loads((run / "stages.json").read_text())
        seconds = {name: stage["seconds"] for name, stage in stages.items()}
        found = findings_of(run)
    print(printed(found))
    if chosen.json:
        content = {
            "machine": record.machine(),
            "commit": record.commit(),
            "seconds": round(sum(seconds.values()), 1),
            "stages": seconds,
            "findings": [each._asdict() for each in found],
        }
        record.write(chosen.json, content)
    return 0
