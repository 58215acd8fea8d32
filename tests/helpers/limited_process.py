"""Campaigns of files in a process of their own, which limits and a crash would end."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers.campaign import Campaign
from helpers.checkout import CHECKOUT


def count_outcomes(module: str, folder: Path, campaign: Campaign) -> None:
    """Run `python -m module FOLDER CASES`, and count the outcomes that it prints as JSON."""
    ended = subprocess.run(
        [sys.executable, "-m", module, folder, str(campaign.cases)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(CHECKOUT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=7200,
    )
    last = folder / "last"
    where = last.read_text() if last.exists() else ""
    assert ended.returncode == 0, f"{where}\n{ended.stderr[-3000:]}"
    for outcome, cases in json.loads(ended.stdout.splitlines()[-1]).items():
        campaign.count(outcome, cases)
    assert campaign.outcomes.total() == campaign.cases
