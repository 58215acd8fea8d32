"""Mutated and hand-made hostile files: no crash, no code that runs, bounded memory and time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.checkout import CHECKOUT


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")
@pytest.mark.campaign("hostile files", 250, 20_000)
def test_mutated_files_of_every_format(tmp_path: Path, campaign: Campaign) -> None:
    """In a process of its own, which limits and a crash would end; see helpers/hostile_files.py."""
    ended = subprocess.run(
        [sys.executable, "-m", "helpers.hostile_files", tmp_path, str(campaign.cases)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(CHECKOUT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=7200,
    )
    last = tmp_path / "last"
    where = last.read_text() if last.exists() else ""
    assert ended.returncode == 0, f"{where}\n{ended.stderr[-3000:]}"
    for outcome, cases in json.loads(ended.stdout).items():
        campaign.count(outcome, cases)
    assert campaign.outcomes.total() == campaign.cases
