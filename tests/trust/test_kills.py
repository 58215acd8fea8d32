"""Killed processes, continued, end with the bytes of undisturbed ones."""

import random
import time
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.disk_writers import WRITERS, contents
from helpers.faulty_disk import KILL, Fault, FaultyDisk
from helpers.interrupted_writers import Interrupted

from saefast.sae import VARIANTS


@pytest.mark.campaign("kills at changes of files", 1, 1000)
@pytest.mark.parametrize("name", WRITERS)
def test_kills_at_calls(name: str, tmp_path: Path, disk: FaultyDisk, campaign: Campaign) -> None:
    writer = Interrupted.prepare(disk, name, tmp_path)
    for call in writer.some_calls(campaign.cases):
        folder = writer.copy()
        assert writer.write(folder, Fault(call.number, KILL)).killed
        campaign.count("killed")
        if not name.startswith("save_sae") and name != "convert":  # where the folder may be aside
            writer.assert_nothing_lost(folder, call)
        writer.assert_second_attempt_succeeds(folder, call)


def kill_at_random(disk: FaultyDisk, work: str, place: Path, campaign: Campaign) -> None:
    """Kill a child at random moments, again and again, until it ends."""
    begun = time.monotonic()
    assert disk.run(work, place / "whole").error is None
    duration = time.monotonic() - begun
    whole = contents(place / "whole")
    chance = random.Random()
    while campaign.outcomes.total() < campaign.cases:
        folder = place / f"killed-{campaign.outcomes.total()}"
        while True:
            ended = disk.run(work, folder, seconds=chance.uniform(0, duration))
            if not ended.killed:
                break
            campaign.count("killed")
        assert ended.error is None, ended.message
        found = contents(folder)
        assert found.keys() == whole.keys()
        assert found == whole, [name for name in whole if found[name] != whole[name]]


@pytest.mark.campaign("kills of a training", 2, 30)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kills_of_trainings(
    variant: str, tmp_path: Path, disk: FaultyDisk, campaign: Campaign
) -> None:
    kill_at_random(disk, f"train_longer:{variant}", tmp_path, campaign)


@pytest.mark.campaign("kills of all stages", 2, 200)
def test_kills_of_all_stages(tmp_path: Path, disk: FaultyDisk, campaign: Campaign) -> None:
    kill_at_random(disk, "pipeline:", tmp_path, campaign)
