"""Files in the folder of a sweep.

- sweep.json: axes and cells, `SweepRecord`
- cells/NAME/: an ordinary run for each cell, with further files in sweep/: done.json, the
  machine of its last stage, `DoneRecord`; failure.json, the reason of a failure, `FailureRecord`;
  and intervals.json, intervals of results.parquet that take long to compute, `IntervalsRecord`
- stores/KEY/: rows of activations, which cells share by links
- results.parquet: a row for each SAE and each cell, derived from the folders of the cells
- report.html: the report of the sweep, derived from results.parquet
- .tables.json: number of tables of results that were written
- shares/N/I/: an empty folder that is locked by the driver of share I of N
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from saefast.disk.atomic import explained, make_folder, move, remove_file
from saefast.disk.lock import Claim, claim_when_free
from saefast.disk.tables import read_json, write_json
from saefast.pipeline.job import Job
from saefast.pipeline.settings_file import without_device
from saefast.run_folder import SETTINGS
from saefast.run_records import read_record, write_record
from saefast.sweep.definition import Cell, Sweep, is_cell_name
from saefast.sweep.records import (
    Changed,
    DoneRecord,
    FailureRecord,
    IntervalsRecord,
    SweepRecord,
)
from saefast.train.checkpoint import RUN, differences

SWEEP = "sweep.json"
CELLS = "cells"
STORES = "stores"
RESULTS = "results.parquet"
_DONE = "sweep/done.json"
_FAILURE = "sweep/failure.json"
_INTERVALS = "sweep/intervals.json"
_TABLES = ".tables.json"
_SHARES = "shares"


class SweepFolder:
    """Folder of a sweep, with the files described in the module.

    Args:
        root: path of the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        """path of the folder"""

    @property
    def stores(self) -> Path:
        """Folder of the stores that cells share."""
        return self.root / STORES

    @property
    def results(self) -> Path:
        """Path of the table of results."""
        return self.root / RESULTS

    def cell(self, name: str) -> Path:
        """Return the path of the run of a cell.

        Args:
            name: name of the cell.

        Returns:
            The path, which may not exist.
        """
        return self.root / CELLS / name

    def job(self, cell: Cell) -> Job:
        """Return the run of a cell, without progress bars.

        Args:
            cell: the cell.

        Returns:
            The job of its run.
        """
        return Job(self.cell(cell.name), cell.settings, False)

    def read(self) -> SweepRecord:
        """Read sweep.json.

        Returns:
            Its content.

        Raises:
            FileNotFoundError: the folder holds no sweep.
            ValueError: the file is damaged, or names a cell that would lie outside of the folder.
        """
        record = read_record(self.root / SWEEP, SweepRecord)
        if record is None:
            raise FileNotFoundError(
                f"{self.root} holds no sweep: {SWEEP} does not exist; start one with saefast sweep "
                f"FILE --out {self.root}"
            )
        for name in record.cells:
            if not is_cell_name(name):
                raise ValueError(
                    f"{self.root / SWEEP} names a cell {name!r:.80} that is no name of a folder; "
                    f"run saefast sweep again, which writes it"
                )
        return record

    def write(self, sweep: Sweep, until: str) -> None:
        """Write sweep.json, one of several drivers at a time.

        Args:
            sweep: the sweep.
            until: last stage of every cell.
        """
        cells = {cell.name: cell.axes for cell in sweep.cells}
        with self.writing():
            write_record(self.root / SWEEP, SweepRecord(list(sweep.axes), until, cells))

    def exists(self) -> bool:
        """Return whether the folder holds a sweep."""
        return (self.root / SWEEP).is_file()

    def check_new(self) -> None:
        """Raise a FileExistsError if the folder holds a run instead of a sweep."""
        if (self.root / RUN).is_file() or (self.root / SETTINGS).is_file():
            raise FileExistsError(
                f"out must be the folder of a sweep, but {self.root} holds a run; choose another "
                f"folder"
            )

    def changed(self, sweep: Sweep) -> list[Changed]:
        """Return the cells that were begun with settings other than those of the sweep file.

        Args:
            sweep: the sweep of the file.

        Returns:
            The changed cells, with their differences.
        """
        found = []
        for cell in sweep.cells:
            then = read_json(self.cell(cell.name) / SETTINGS)
            if then is None:
                continue
            then, now = _decisive(then), _decisive(cell.settings.to_dict())
            changes = differences(then, now)
            if changes:
                parts = {name for name in {**then, **now} if then.get(name) != now.get(name)}
                later = {"stability", "subspace", "pool", "evaluate"}
                found.append(Changed(cell.name, tuple(changes), not parts <= later))
        return found

    def leftover(self, sweep: Sweep) -> list[str]:
        """Return the names of folders whose cells are not in the sweep file.

        Args:
            sweep: the sweep of the file.

        Returns:
            The names, sorted.
        """
        names = {cell.name for cell in sweep.cells}
        cells = self.root / CELLS
        there = sorted(path.name for path in cells.glob("[!.]*")) if cells.is_dir() else []
        return [name for name in there if name not in names]

    def remove(self, name: str) -> None:
        """Remove the folder of a cell, but not the stores that it shares.

        The folder is renamed first, so that a kill leaves no cell with a part of its files.

        Args:
            name: name of the cell.
        """
        aside = self.cell(f".{name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        move(self.cell(name), aside)
        with explained(aside, "could not be removed"):
            shutil.rmtree(aside)

    def rewrite_settings(self, cell: Cell) -> None:
        """Replace the settings of a begun cell, whose later stages then run again.

        Args:
            cell: the cell.
        """
        write_json(self.cell(cell.name) / SETTINGS, cell.settings.to_dict())

    def done(self, name: str) -> DoneRecord | None:
        """Read done.json of a cell.

        Args:
            name: name of the cell.

        Returns:
            The record; None if the cell is not finished.
        """
        return read_record(self.cell(name) / _DONE, DoneRecord)

    def write_done(self, name: str, record: DoneRecord) -> None:
        """Write done.json of a cell and remove failure.json.

        Args:
            name: name of the cell.
            record: content of the file.
        """
        write_record(self.cell(name) / _DONE, record)
        remove_file(self.cell(name) / _FAILURE)

    def failure(self, name: str) -> FailureRecord | None:
        """Read failure.json of a cell.

        Args:
            name: name of the cell.

        Returns:
            The record; None if the cell did not fail.
        """
        return read_record(self.cell(name) / _FAILURE, FailureRecord)

    def write_failure(self, name: str, record: FailureRecord) -> None:
        """Write failure.json of a cell.

        Args:
            name: name of the cell.
            record: content of the file.
        """
        write_record(self.cell(name) / _FAILURE, record)

    def intervals(self, name: str) -> IntervalsRecord | None:
        """Read intervals.json of a cell.

        Args:
            name: name of the cell.

        Returns:
            The record; None if there is none.
        """
        return read_record(self.cell(name) / _INTERVALS, IntervalsRecord)

    def write_intervals(self, name: str, record: IntervalsRecord) -> None:
        """Write intervals.json of a cell.

        Args:
            name: name of the cell.
            record: content of the file.
        """
        write_record(self.cell(name) / _INTERVALS, record)

    @property
    def tables(self) -> int:
        """Number of times that the table of results and the report were written."""
        return int((read_json(self.root / _TABLES) or {}).get("written", 0))

    def count_table(self) -> None:
        """Increase `tables` by one, while `writing`."""
        write_json(self.root / _TABLES, {"written": self.tables + 1})

    @contextmanager
    def claimed(self, share: tuple[int, int] | None) -> Iterator[None]:
        """Lock the sweep, or one share of it, for one driver.

        Args:
            share: number of the share and number of shares; None: the whole sweep, which excludes
                drivers of shares as well.

        Yields:
            None, while the lock is held.

        Raises:
            BlockingIOError: another driver uses the sweep or share.
        """
        with ExitStack() as held:
            held.enter_context(Claim(self.root, shared=share is not None))
            if share is not None:
                number, of = share
                held.enter_context(Claim(self.root / _SHARES / str(of) / str(number)))
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the files that all drivers write: sweep.json, the table of results and the report.

        The last of several drivers reads all cells.

        Yields:
            None, while the lock is held.
        """
        make_folder(self.root / CELLS)
        with claim_when_free(self.root / CELLS):
            yield


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without devices and those of [trainer] that change no result."""
    initial = (settings.get("trainer") or {}).get("initial", [])
    return {**without_device(settings), "trainer": {"initial": list(initial)}}
