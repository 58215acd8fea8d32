"""A training whose ranks are killed again and again ends with the bytes of one process."""

import os
import random
import time
from pathlib import Path

import pytest
import torch
from helpers.campaign import Campaign
from helpers.rank_processes import SOON, RankProcesses
from helpers.training_runs import ROWS, checkpoint_of, command, saved

STEPS = 62


@pytest.mark.campaign("killed ranks", 3, 20)
def test_random_kills_are_survived_with_equal_bytes(tmp_path: Path, campaign: Campaign) -> None:
    """At any moment from the start to the last steps: in a step, an exchange or a checkpoint."""
    torch.save(ROWS, tmp_path / "rows.pt")
    longer = ["--tokens", str(STEPS * 128)]
    assert RankProcesses(1, command("unbroken", *longer), tmp_path).ended(SOON) == [0]
    chance = random.Random(int.from_bytes(os.urandom(4)))
    out = tmp_path / "broken"
    for target in sorted(chance.choices(range(-1, STEPS - 7), k=campaign.cases)):
        size, wait = chance.choice([2, 2, 4]), chance.uniform(0, 0.1)
        # Ranks that are killed before they are connected are waited for.
        ranks = RankProcesses(size, command("broken", *longer), tmp_path, patience=20)
        while checkpoint_of(out) < target:
            assert len(ranks.running) == size, ranks.printed()
            time.sleep(0.001)
        time.sleep(wait)
        victim = chance.randrange(size)
        ranks.kill(victim)
        codes = ranks.ended(SOON, without=[victim])
        assert codes == [1] * (size - 1), ranks.printed()
        campaign.count("end of the others")
    ranks = RankProcesses(4, command("broken", *longer), tmp_path)
    assert ranks.ended(SOON) == [0] * 4, ranks.printed()
    assert saved(out) == saved(tmp_path / "unbroken")
