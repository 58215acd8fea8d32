"""A run under any sequence of kills, changes, writers and damage ends like an undisturbed one."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.campaign import Campaign
from helpers.disk_writers import contents
from helpers.faulty_disk import KILL, Ended, Fault, FaultyDisk
from helpers.flipped_bits import flipped
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import saefast
from saefast.disk.lock import Claim

STAGES = ("train", "statistics", "match", "stability", "evaluate")
LAST = STAGES[-1]
PAIR = "matches/decoder/0-1.parquet"
REMADE = ("features.parquet", "overlap.parquet", PAIR, "stages.json")
REMADE += ("settings.json", "stability.json", "membership.json", "evaluation.json")
NEEDED = ("run.json", "seed-1/sae_weights.safetensors", "store/train/index.json")
OTHER = {0.008: 0.004, 0.004: 0.008, 0.7: 0.6, 0.6: 0.7}
"""Changed learning rates and thresholds"""
Changes = dict[str, float]


def machine(disk: FaultyDisk) -> type[RuleBasedStateMachine]:
    """Return the machine whose runs are children of `disk`."""

    def run(folder: Path, until: str, changes: Changes, fault: Fault = Fault()) -> Ended:  # noqa: B008
        return disk.run(f"stages:{json.dumps([until, changes])}", folder, fault)

    @cache
    def undisturbed(lr: float, threshold: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            changes = {"train.lr": lr, "stability.threshold": threshold}
            assert run(Path(folder), LAST, changes).error is None
            return contents(Path(folder))

    class RunMachine(RuleBasedStateMachine):
        """A run, and the settings that it must have."""

        @initialize(until=st.sampled_from((*STAGES, None)))
        def begin(self, until: str | None) -> None:
            self.folder = Path(tempfile.mkdtemp())
            self.run = self.folder / "run"
            self.lr, self.threshold = 0.008, 0.7
            self.removed: set[str] = set()
            if until is not None:  # so that few rules are needed for what happens late in a run
                self.resume(until)

        @property
        def changes(self) -> Changes:
            return {"train.lr": self.lr, "stability.threshold": self.threshold}

        @property
        def trains(self) -> bool:
            return (self.run / "run.json").exists()

        @rule(until=st.sampled_from(STAGES))
        def resume(self, until: str) -> None:
            ended = run(self.folder, until, self.changes)
            assert ended.error is None, ended.message

        @rule(until=st.sampled_from(STAGES), call=st.integers(1, 120))
        def kill(self, until: str, call: int) -> None:
            ended = run(self.folder, until, self.changes, Fault(call, KILL))
            assert ended.error is None, ended.message

        @rule(until=st.sampled_from(STAGES))
        def change_later_settings(self, until: str) -> None:
            self.threshold = OTHER[self.threshold]
            self.resume(until)

        @rule()
        def change_settings_of_the_training(self) -> None:
            other = OTHER[self.lr]
            if self.trains:
                ended = run(self.folder, "train", {**self.changes, "train.lr": other})
                assert ended.error == "ValueError", ended
                assert f"lr was {self.lr} and is now {other}" in ended.message
            else:
                self.lr = other

        @rule()
        def write_beside_another_process(self) -> None:
            # The stage begins again if its record is missing, also if the training has finished.
            records = self.run / "stages.json"
            finished = records.exists() and "train" in json.loads(records.read_text())
            with Claim(self.run):
                ended = run(self.folder, "train", self.changes)
            assert ended.error == (None if finished else "BlockingIOError"), ended.message
            assert finished or "another process" in ended.message

        def some_file(self, data: st.DataObject, names: tuple[str, ...]) -> Path | None:
            there = [name for name in names if (self.run / name).exists()]
            return self.run / data.draw(st.sampled_from(there)) if there else None

        @precondition(lambda self: self.trains)
        @rule(data=st.data())
        def remove_a_file_that_is_made_again(self, data: st.DataObject) -> None:
            file = self.some_file(data, REMADE)
            if file is not None:
                file.unlink()
                self.removed.add(f"run/{file.relative_to(self.run)}")

        def assert_named(self, file: Path) -> None:
            """Assert that a run either does not need the file or names it, with its folder."""
            (self.run / "evaluation.json").unlink(missing_ok=True)
            ended = run(self.folder, LAST, self.changes)
            if ended.error is not None:
                assert ended.error in ("ValueError", "FileNotFoundError"), ended.message
                assert str(file.parent) in ended.message, ended.message
                assert file.name in ended.message, ended.message

        @precondition(lambda self: self.trains)
        @rule(data=st.data())
        def remove_a_file_that_is_needed(self, data: st.DataObject) -> None:
            file = self.some_file(data, NEEDED[1:])
            if file is None:
                return
            aside = self.folder / "aside"
            file.rename(aside)
            self.assert_named(file)
            aside.rename(file)

        @precondition(lambda self: self.trains)
        @rule(data=st.data())
        def damage_a_file(self, data: st.DataObject) -> None:
            names = tuple(
                str(path.relative_to(self.run))
                for path in sorted(self.run.rglob("*"))
                if path.suffix in (".parquet", ".safetensors") and ".part" not in str(path)
            )
            file = self.some_file(data, names)
            if file is None:
                return
            with flipped(file, data.draw(st.integers(0, 8 * file.stat().st_size - 1))):
                assert file in {each.path for each in saefast.verify(self.run)}
                before = file.read_bytes()
                self.assert_named(file)
                remade = not file.exists() or file.read_bytes() != before
                kept = file.read_bytes() if remade and file.exists() else None
            if kept is not None:
                file.write_bytes(kept)

        def teardown(self) -> None:
            if not hasattr(self, "folder"):
                return
            ended = run(self.folder, LAST, self.changes)
            assert ended.error is None, ended.message
            expected, found = dict(undisturbed(self.lr, self.threshold)), contents(self.folder)
            if f"run/{PAIR}" in self.removed - found.keys():  # no later stage has needed it
                del expected[f"run/{PAIR}"]
            assert found.keys() == expected.keys()
            assert found == expected, [name for name in found if found[name] != expected[name]]
            shutil.rmtree(self.folder)

    return RunMachine


@pytest.mark.campaign("sequences on a run", 3, 60)
def test_a_run_ends_like_an_uninterrupted_one(disk: FaultyDisk, campaign: Campaign) -> None:
    run_state_machine_as_test(
        machine(disk), settings=settings(max_examples=campaign.cases, stateful_step_count=8)
    )
    campaign.count("as the model", campaign.cases)
