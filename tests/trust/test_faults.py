"""A failing disk loses nothing, is explained in one sentence, and a second attempt succeeds."""

import random
from errno import EDQUOT, EINTR, EIO, ENOSPC, EROFS, EXDEV
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.disk_writers import NAMES, contents
from helpers.faulty_disk import SHORT, SLOW, Call, Fault, FaultyDisk
from helpers.interrupted_writers import Interrupted, moved_away

HARMLESS = (SHORT, SLOW, EINTR)
KINDS = {
    "create": (ENOSPC, EIO, EDQUOT, EROFS, EINTR, SLOW),
    "open": (ENOSPC, EIO, EDQUOT, EROFS, EINTR, SLOW),
    "write": (ENOSPC, EIO, EDQUOT, SHORT, EINTR),
    "flush": (EIO, ENOSPC),
    "rename": (EXDEV, EIO, EROFS),
    "mkdir": (ENOSPC, EIO, EDQUOT, EROFS),
    "remove": (EIO, EROFS),
}
LASTING = (ENOSPC, EDQUOT, EROFS)


def fault_of(writer: str, call: Call) -> Fault:
    drawn = random.Random(f"{writer} {call.number}")
    kind = drawn.choice(KINDS[call.kind])
    return Fault(call.number, kind, kind in LASTING and drawn.random() < 0.5)


@pytest.mark.campaign("faults of the disk", 2, 250)
@pytest.mark.parametrize("name", NAMES)
def test_faults(name: str, tmp_path: Path, disk: FaultyDisk, campaign: Campaign) -> None:
    writer = Interrupted.prepare(disk, name, tmp_path)
    for call in writer.some_calls(campaign.cases):
        fault = fault_of(name, call)
        why = (name, str(fault), call)
        folder = writer.copy()
        ended = writer.write(folder, fault)
        writer.assert_nothing_lost(folder, why)
        if ended.error is not None:
            assert fault.kind not in HARMLESS, (why, ended.message)
            assert ended.error in ("OSError", "PermissionError"), (why, ended.error, ended.message)
            assert str(folder) in ended.message, (why, ended.message)
            assert "\n" not in ended.message, (why, ended.message)
            assert "choose" in ended.message, (why, ended.message)
        for place in moved_away(folder):
            assert f"the earlier SAE is in {place}" in ended.message, (why, ended.message)
        campaign.count("no effect" if ended.error is None else "clear error")
        writer.assert_second_attempt_succeeds(folder, why, parts_remain=fault.lasts)


def test_short_writes_of_metrics(tmp_path: Path, disk: FaultyDisk) -> None:
    writer = Interrupted.prepare(disk, "train anew", tmp_path)
    lines = [c for c in writer.calls if c.kind == "write" and c.path.endswith("metrics.jsonl")]
    assert lines
    for call in lines:
        folder = writer.copy()
        assert writer.write(folder, Fault(call.number, SHORT)).error is None
        assert contents(folder) == writer.whole


@pytest.mark.parametrize("name", ["save_sae openai", "save_sae gemma_scope", "save_sae sae_lens"])
def test_a_full_disk_is_named_by_every_library(name: str, tmp_path: Path, disk: FaultyDisk) -> None:
    writer = Interrupted.prepare(disk, name, tmp_path)
    first = next(call for call in writer.calls if call.kind == "write")
    ended = writer.write(writer.copy(), Fault(first.number, ENOSPC))
    assert ended.error == "OSError"
    assert "could not be written: No space left on device; free space" in ended.message


def test_a_checkpoint_counts_although_the_previous_one_cannot_be_removed(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    writer = Interrupted.prepare(disk, "train anew", tmp_path)
    old = [c for c in writer.calls if c.kind == "remove" and c.path.endswith("step-1.safetensors")]
    assert len(old) == 2  # one of each SAE
    for call in old:
        folder = writer.copy()
        assert writer.write(folder, Fault(call.number, EIO)).error is None
        assert contents(folder) == writer.whole
