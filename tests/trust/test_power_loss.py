"""After a power failure what was promised is on disk, and every writer can continue."""

import hashlib
import random
import tempfile
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.disk_writers import NAMES, WRITERS, contents
from helpers.faulty_disk import FaultyDisk
from helpers.interrupted_writers import Interrupted
from helpers.power_loss import CASES, Disk, write_files

WITHOUT_LINKS = [name for name in NAMES if name != "sweep"]  # calls that make links are not seen
Files = dict[str, bytes | None]


def digest(files: Files) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def states(writer: Interrupted) -> tuple[list[tuple[str, int, Files]], Files]:
    """Return the different states after each call, with what was promised, and the last one."""
    work = writer.before.parent / "done"
    disk = Disk(writer.before, work, writer.kept)
    found: dict[str, tuple[str, int, Files]] = {}
    promised = 0
    for call in writer.calls:
        disk.apply(call)
        if call.kind == "note" and call.path.isdigit():
            promised = int(call.path)
        for case in CASES:
            files = disk.after_failure(case)
            # The same state may be reached before and after a promise.
            found[f"{digest(files)} {promised}"] = (f"{case} names after {call}", promised, files)
    return list(found.values()), disk.after_failure("flushed")


@pytest.mark.campaign("power failures", 3, 60)
@pytest.mark.parametrize("name", WITHOUT_LINKS)
def test_power_failures(name: str, tmp_path: Path, disk: FaultyDisk, campaign: Campaign) -> None:
    writer = Interrupted.prepare(disk, name, tmp_path)
    after, last = states(writer)
    write_files(last, tmp_path / "last")
    found = contents(tmp_path / "last")
    # Removed files may be there again: the second attempt, below, removes them.
    assert {path: found.get(path) for path in writer.whole} == writer.whole
    if len(after) > campaign.cases:
        after = random.Random(name).sample(after, campaign.cases)
    for why, promised, files in after:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "work"
        folder.mkdir()
        write_files(files, folder)
        assert WRITERS[name].promised(folder) >= promised, why
        writer.assert_second_attempt_succeeds(folder, why)
        campaign.count("continued")
