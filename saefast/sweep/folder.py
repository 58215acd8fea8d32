"""The folder of a sweep.

sweep.json          axes and cells: `SweepRecord`
cells/NAME/         an ordinary run for each cell; beside its own files sweep/:
    done.json       where its last stage ran: `DoneRecord`
    failure.json    why it could not be finished: `FailureRecord`
stores/KEY/         rows, which cells share by links
results.parquet     a row for each SAE and each cell; made from the cells' folders
report.html
shares/N/I/         claimed by the driver of share I of N; holds nothing
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saefast.disk.lock import Claim
from saefast.disk.tables import read_json
from saefast.pipeline.job import Job
from saefast.run_folder import SETTINGS
from saefast.run_records import read_record, write_record
from saefast.sweep.definition import Cell, Sweep
from saefast.train.checkpoint import RUN, differences

SWEEP = "sweep.json"
CELLS = "cells"
STORES = "stores"
RESULTS = "results.parquet"
_DONE = "sweep/done.json"
_FAILURE = "sweep/failure.json"
_SHARES = "shares"
_PATIENCE = 0.5


@dataclass(frozen=True)
class SweepRecord:
    """sweep.json"""

    axes: list[str]
    until: str
    """last stage of every cell"""
    cells: dict[str, dict[str, Any]]
    """by name: the value on each axis"""


@dataclass(frozen=True)
class DoneRecord:
    """done.json: where a cell was finished."""

    machine: str
    processor: str
    device: str
    commit: str | None
    """of the checkout that saefast was imported from; None for an installed package"""
    saefast: str
    torch: str
    threads: int


@dataclass(frozen=True)
class FailureRecord:
    """failure.json"""

    reason: str
    """one line"""
    attempts: int


@dataclass(frozen=True)
class Changed:
    """A cell whose folder was begun with other settings than the sweep file has now."""

    cell: str
    differences: tuple[str, ...]
    """such as: train.lr was 0.1, is 0.2 now"""
    again: bool
    """whether its SAEs must be trained again; else later stages run again"""


class SweepFolder:
    """Reads and writes what a sweep keeps beside its cells.

    Args:
        root: the folder of the sweep.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def stores(self) -> Path:
        """Folder of the rows that cells share."""
        return self.root / STORES

    @property
    def results(self) -> Path:
        """The table of results."""
        return self.root / RESULTS

    def cell(self, name: str) -> Path:
        """Return the folder of a cell's run."""
        return self.root / CELLS / name

    def job(self, cell: Cell, progress: bool = False) -> Job:
        """Return the run of a cell."""
        return Job(self.cell(cell.name), cell.settings, progress)

    def read(self) -> SweepRecord:
        """Read sweep.json.

        Raises:
            FileNotFoundError: the folder holds no sweep.
        """
        record = read_record(self.root / SWEEP, SweepRecord)
        if record is None:
            raise FileNotFoundError(
                f"{self.root} holds no sweep: {SWEEP} is not there; saefast sweep FILE --out "
                f"{self.root} begins one"
            )
        return record

    def write(self, sweep: Sweep, until: str) -> None:
        """Write sweep.json."""
        cells = {cell.name: cell.axes for cell in sweep.cells}
        write_record(self.root / SWEEP, SweepRecord(list(sweep.axes), until, cells))

    def check_new(self) -> None:
        """Raise an error if the folder holds something else than a sweep."""
        if (self.root / RUN).is_file() or (self.root / SETTINGS).is_file():
            raise FileExistsError(
                f"out must be the folder of a sweep, but {self.root} holds a run; choose another"
            )

    def changed(self, sweep: Sweep) -> list[Changed]:
        """Compare the cells that were begun with the sweep file's."""
        found = []
        for cell in sweep.cells:
            then = read_json(self.cell(cell.name) / SETTINGS)
            if then is None:
                continue
            now = cell.settings.to_dict()
            told = differences(then, now)
            if told:
                parts = {name for name in {**then, **now} if then.get(name) != now.get(name)}
                later = {"stability", "subspace", "pool", "evaluate"}
                found.append(Changed(cell.name, tuple(told), not parts <= later))
        return found

    def leftover(self, sweep: Sweep) -> list[str]:
        """List folders of cells that the sweep file does not have."""
        names = {cell.name for cell in sweep.cells}
        cells = self.root / CELLS
        there = sorted(path.name for path in cells.iterdir()) if cells.is_dir() else []
        return [name for name in there if name not in names]

    def remove(self, name: str) -> None:
        """Remove the folder of a cell; rows that it shares stay."""
        shutil.rmtree(self.cell(name))

    def done(self, name: str) -> DoneRecord | None:
        """Return where a cell was finished; None if it was not."""
        return read_record(self.cell(name) / _DONE, DoneRecord)

    def write_done(self, name: str, record: DoneRecord) -> None:
        """Record where a cell was finished, and forget that it failed before."""
        write_record(self.cell(name) / _DONE, record)
        (self.cell(name) / _FAILURE).unlink(missing_ok=True)

    def failure(self, name: str) -> FailureRecord | None:
        """Return why a cell failed; None if it did not."""
        return read_record(self.cell(name) / _FAILURE, FailureRecord)

    def write_failure(self, name: str, record: FailureRecord) -> None:
        """Record why a cell failed."""
        write_record(self.cell(name) / _FAILURE, record)

    @contextmanager
    def claimed(self, share: tuple[int, int] | None) -> Iterator[None]:
        """Hold the sweep, or one share of it; a second driver of the same gets an error.

        Args:
            share: number of the share and of all shares; None: the whole sweep, which excludes
                drivers of shares, too.

        Raises:
            BlockingIOError: another driver works in the folder.
        """
        with ExitStack() as held:
            held.enter_context(Claim(self.root, shared=share is not None))
            if share is not None:
                number, of = share
                held.enter_context(Claim(self.root / _SHARES / str(of) / str(number)))
            yield

    @contextmanager
    def writing_results(self) -> Iterator[None]:
        """Hold the table of results, so that the last of several drivers sees all cells."""
        (self.root / CELLS).mkdir(exist_ok=True)
        with claim_when_free(self.root / CELLS):
            yield


def claim_when_free(folder: Path) -> Claim:
    """Claim a folder, and wait while another process has it."""
    while True:
        try:
            return Claim(folder)
        except BlockingIOError:
            time.sleep(_PATIENCE)
