"""A store under any sequence of writers, kills, faults and damage, against a list of its rows."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers.campaign import Campaign
from helpers.flipped_bits import flipped
from helpers.small_store import D, contents, numbered, shard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import saefast
from saefast.activations import StoreWriter

SHARD = 10


class StoreMachine(RuleBasedStateMachine):
    """A store, and the numbers of the rows that it must hold."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp()) / "store"
        self.rows: list[int] = []  # of finished shards
        self.shards = 0
        self.waiting: list[int] = []  # appended, in no shard yet
        self.appended = 0
        self.writer: StoreWriter | None = None

    def opened(self, **changes: object) -> StoreWriter:
        wanted = {"d": D, "dtype": torch.float32, "rows_per_shard": SHARD, "resume": True}
        return StoreWriter(self.folder, **{**wanted, **changes})  # type: ignore[arg-type]

    @precondition(lambda self: self.writer is None)
    @rule()
    def open(self) -> None:
        self.writer = self.opened()
        assert self.writer.rows == len(self.rows)

    @precondition(lambda self: self.writer is not None)
    @rule(count=st.integers(0, 35))
    def append(self, count: int) -> None:
        assert self.writer is not None
        first, self.appended = self.appended, self.appended + count
        self.writer.append(numbered(first, first + count))
        self.waiting += range(first, first + count)
        self.finish(len(self.waiting) // SHARD)
        assert self.writer.rows == len(self.rows) + len(self.waiting)

    def finish(self, shards: int) -> None:
        """Move the rows of so many full shards to the finished ones."""
        self.rows += self.waiting[: shards * SHARD]
        self.shards += shards
        del self.waiting[: shards * SHARD]

    @precondition(lambda self: self.writer is not None)
    @rule()
    def close(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.shards += bool(self.waiting)
        self.rows += self.waiting
        self.writer, self.waiting = None, []

    @precondition(lambda self: self.writer is not None)
    @rule()
    def stop(self) -> None:
        """Leave the writer by an error, which keeps the finished shards alone."""
        assert self.writer is not None
        self.writer.__exit__(KeyboardInterrupt)
        self.writer, self.waiting = None, []

    @precondition(lambda self: self.writer is not None)
    @rule(works=st.integers(0, 9), count=st.integers(SHARD, 35))
    def fill_the_disk(self, works: int, count: int) -> None:
        """Append while the disk gets full after some flushes, of which a shard needs four."""
        assert self.writer is not None
        flushes = iter(range(works))

        def flush(descriptor: int) -> None:
            if next(flushes, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        first, self.appended = self.appended, self.appended + count
        self.waiting += range(first, first + count)
        full = len(self.waiting) // SHARD
        with patch.object(os, "fsync", flush):
            if works >= 4 * full:
                self.writer.append(numbered(first, first + count))
                self.finish(full)
                return
            with pytest.raises(OSError, match=r"free space .* are complete; continue with"):
                self.writer.append(numbered(first, first + count))
        # A shard counts once the index names it, even if that name is not yet flushed.
        self.finish((works + 1) // 4)
        with pytest.raises(ValueError, match="closed or has failed"):
            self.writer.append(numbered(0, 1))
        self.stop()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def open_a_second_writer(self) -> None:
        with pytest.raises(BlockingIOError, match="another process"):
            self.opened()

    @precondition(lambda self: self.writer is None and self.folder.exists())
    @rule(changes=st.sampled_from([{"d": D + 1}, {"dtype": torch.bfloat16}, {"resume": False}]))
    def change_settings(self, changes: dict[str, object]) -> None:
        with pytest.raises((ValueError, FileExistsError), match=r"choose another|resume=True"):
            self.opened(**changes)

    @precondition(lambda self: self.shards > 0)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        file = shard(self.folder, data.draw(st.integers(0, self.shards - 1)))
        bit = data.draw(st.integers(0, 8 * file.stat().st_size - 1))
        with flipped(file, bit):
            assert file in {each.path for each in saefast.verify(self.folder)}
            with pytest.raises(ValueError, match=file.name):
                contents(self.folder)

    @precondition(lambda self: self.shards > 0)
    @rule(data=st.data())
    def remove_a_shard(self, data: st.DataObject) -> None:
        file = shard(self.folder, data.draw(st.integers(0, self.shards - 1)))
        aside = file.with_name("aside")
        file.rename(aside)
        assert file in {each.path for each in saefast.verify(self.folder)}
        with pytest.raises((ValueError, OSError), match=file.name):
            contents(self.folder)
        aside.rename(file)

    @invariant()
    def holds_the_finished_rows(self) -> None:
        if getattr(self, "shards", 0):
            assert contents(self.folder)[:, 0].tolist() == self.rows
            assert not saefast.verify(self.folder)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            if self.writer is not None:
                self.stop()
            shutil.rmtree(self.folder.parent)


@pytest.mark.campaign("sequences on a store", 8, 300)
def test_a_store_behaves_like_a_list(campaign: Campaign, light: None) -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=campaign.cases, stateful_step_count=20)
    )
    campaign.count("as the model", campaign.cases)
