"""Killed processes, continued, end with the bytes of undisturbed ones."""

import random
import shutil
import time
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.disk_writers import NAMES, contents
from helpers.faulty_disk import KILL, Fault, FaultyDisk
from helpers.interrupted_writers import Interrupted

from saefast.sae import VARIANTS


@pytest.mark.campaign("kills at changes of files", 1, 250)
@pytest.mark.parametrize("name", NAMES)
def test_kills_at_calls(name: str, tmp_path: Path, disk: FaultyDisk, campaign: Campaign) -> None:
    writer = Interrupted.prepare(disk, name, tmp_path)
    for call in writer.some_calls(campaign.cases):
        folder = writer.copy()
        assert writer.write(folder, Fault(call.number, KILL)).killed
        campaign.count("killed")
        if not name.startswith("save_sae") and name != "convert":  # where the folder may be aside
            writer.assert_nothing_lost(folder, call)
        writer.assert_second_attempt_succeeds(folder, call)


IN_A_ROW = 8
"""Kills of one run, each after an eighth of its duration at most, before it may end"""


def kill_at_random(disk: FaultyDisk, work: str, place: Path, campaign: Campaign) -> None:
    """Kill runs at random moments, let them end, and compare them with an undisturbed one."""
    begun = time.monotonic()
    assert disk.run(work, place / "whole").error is None
    duration = time.monotonic() - begun
    whole = contents(place / "whole")
    chance = random.Random(work)
    while campaign.outcomes["killed"] < campaign.cases:
        folder = place / f"killed-{campaign.outcomes['killed']}"
        for _ in range(min(IN_A_ROW, campaign.cases - campaign.outcomes["killed"])):
            ended = disk.run(work, folder, seconds=chance.uniform(0, duration / IN_A_ROW))
            assert ended.error is None, ended.message
            if not ended.killed:
                break
            campaign.count("killed")
        ended = disk.run(work, folder)
        assert ended.error is None, ended.message
        found = contents(folder)
        assert found.keys() == whole.keys()
        assert found == whole, [name for name in whole if found[name] != whole[name]]
        shutil.rmtree(folder)


@pytest.mark.campaign("kills of a training", 3, 32)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kills_of_trainings(
    variant: str, tmp_path: Path, disk: FaultyDisk, campaign: Campaign
) -> None:
    kill_at_random(disk, f"train_longer:{variant}", tmp_path, campaign)


@pytest.mark.campaign("kills of all stages", 3, 208)
def test_kills_of_all_stages(tmp_path: Path, disk: FaultyDisk, campaign: Campaign) -> None:
    kill_at_random(disk, "pipeline:", tmp_path, campaign)
