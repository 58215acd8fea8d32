"""Mutated and hand-made hostile files: no crash, no code that runs, bounded memory and time."""

import sys
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.limited_process import count_outcomes


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")
@pytest.mark.campaign("hostile files", 250, 20_000)
def test_mutated_files_of_every_format(tmp_path: Path, campaign: Campaign) -> None:
    """Each mutated file is read or refused; see helpers/hostile_files.py."""
    count_outcomes("helpers.hostile_files", tmp_path, campaign)
