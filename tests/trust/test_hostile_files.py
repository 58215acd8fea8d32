"""Mutated and hand-made hostile files: no crash, no code that runs, bounded memory and time."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.limited_process import count_outcomes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS"
)


@pytest.mark.campaign("hostile files", 250, 20_000)
def test_mutated_files_of_every_format(tmp_path: Path, campaign: Campaign) -> None:
    """Each mutated file is read or refused; see helpers/hostile_files.py."""
    count_outcomes("helpers.hostile_files", tmp_path, campaign)


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs saefast[lm]")
@pytest.mark.campaign("hostile files of GGUF", 40, 1500)
def test_mutated_language_models(tmp_path: Path, campaign: Campaign) -> None:
    """Each mutated GGUF file is loaded or refused; see helpers/hostile_gguf.py."""
    count_outcomes("helpers.hostile_gguf", tmp_path, campaign)
