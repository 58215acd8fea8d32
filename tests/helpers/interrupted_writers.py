"""Writers of `disk_writers` on copies of the folders in which they continue."""

import json
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from helpers.disk_writers import contents
from helpers.faulty_disk import Call, Ended, Fault, FaultyDisk

import saefast
from saefast.disk.atomic import PART


def moved_away(folder: Path) -> list[Path]:
    """Return earlier SAEs that a failing disk did not let back to their places."""
    moved = folder.rglob(".*.part/old")
    return [
        old
        for old in moved
        if not old.parent.with_name(old.parent.name[1:].removesuffix(".part")).exists()
    ]


class Interrupted(NamedTuple):
    """Writer, the files that it finds, and those that it leaves if it is not interrupted."""

    disk: FaultyDisk
    name: str
    before: Path
    """folder with earlier work"""
    kept: Path
    """links to the files that the undisturbed writer flushed, by the number of the call"""
    calls: list[Call]
    """calls of the undisturbed writer"""
    whole: dict[str, Any]
    """contents that it wrote"""

    @classmethod
    def prepare(cls, disk: FaultyDisk, name: str, place: Path) -> "Interrupted":
        """Run a writer once in an empty folder."""
        before, done, kept = (place / part for part in ("before", "done", "kept"))
        kept.mkdir()
        begun = disk.run(f"before:{name}", before)
        assert begun.error is None, begun.message
        shutil.copytree(before, done, symlinks=True)
        ended = disk.run(f"write:{name}", done, kept=kept)
        assert ended.error is None, ended.message
        return cls(disk, name, before, kept, ended.log, contents(done))

    def copy(self) -> Path:
        """Copy the earlier work to a new folder."""
        folder = Path(tempfile.mkdtemp(dir=self.before.parent)) / "work"
        shutil.copytree(self.before, folder, symlinks=True)
        return folder

    def write(self, folder: Path, fault: Fault = Fault()) -> Ended:  # noqa: B008
        """Run the writer on a folder."""
        return self.disk.run(f"write:{self.name}", folder, fault)

    def assert_nothing_lost(self, folder: Path, why: object) -> None:
        """Assert that earlier files are there, and that no file is torn.

        If a failing disk allows no more changes, an earlier SAE may be in a folder beside its own,
        and a part of the intermediate state of a finished stage may remain.
        """
        files = {
            re.sub(r"\.(\w+)\.part/old\b", r"\1", str(path.relative_to(folder))): path
            for path in folder.rglob("*")
        }
        earlier = {str(path.relative_to(self.before)) for path in self.before.rglob("*")}
        needed = {name for name in earlier if name in self.whole}
        assert needed <= files.keys(), (why, needed - files.keys())
        for name, path in files.items():
            if path.suffix == ".json" and ".part" not in name:
                json.loads(path.read_bytes())
        for place in moved_away(folder) or [folder] * bool(needed):
            damaged = [
                each for each in saefast.verify(place) if "unfinished" not in each.path.parts
            ]
            assert not damaged, (why, damaged)

    def assert_second_attempt_succeeds(
        self, folder: Path, why: object, *, parts_remain: bool = False
    ) -> None:
        """Assert that the writer, run again, leaves the files of an undisturbed one.

        Args:
            folder: folder of the first attempt, which is removed.
            why: message if this fails.
            parts_remain: whether `.part` files may remain, since the disk allowed no removal.
        """
        again = self.write(folder)
        assert again.error is None, (why, again.message)
        found = contents(folder)
        if parts_remain:
            found = {name: each for name, each in found.items() if not name.endswith(PART)}
        assert found.keys() == self.whole.keys(), (why, found.keys() ^ self.whole.keys())
        assert found == self.whole, (why, [k for k in found if found[k] != self.whole[k]])
        shutil.rmtree(folder.parent)

    def some_calls(self, count: int) -> list[Call]:
        """Return that many of the writer's calls, all if there are fewer."""
        calls = [call for call in self.calls if call.number > 0]
        drawn = random.Random(self.name)
        return calls if count >= len(calls) else drawn.sample(calls, count)
