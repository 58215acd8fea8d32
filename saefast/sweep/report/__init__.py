"""Report of a sweep: one self-contained HTML file."""

from pathlib import Path

from saefast.disk.atomic import write_whole
from saefast.report.run_data import named_in_errors
from saefast.run_folder import REPORT
from saefast.sweep.folder import SweepFolder
from saefast.sweep.report.page import page
from saefast.sweep.report.sweep_data import read_sweep_data
from saefast.sweep.table import write_results

__all__ = ["write_sweep_report", "write_table_and_report"]


def write_table_and_report(folder: SweepFolder) -> tuple[Path, Path]:
    """Write the table of results and the report of a sweep, one of several drivers at a time.

    A driver that waited while others wrote both twice does not write them again: the second time
    began after its call, and has all results of its cells.

    Args:
        folder: folder of the sweep.

    Returns:
        Paths of the table and the report.
    """
    before = folder.tables
    with folder.writing():
        if folder.tables < before + 2:
            with named_in_errors(folder.root):
                write_results(folder)
                write_sweep_report(folder)
                folder.count_table()
    return folder.results, folder.root / REPORT


def write_sweep_report(folder: SweepFolder) -> Path:
    """Write report.html of a sweep from its table of results.

    The page shows every measure of the table over every axis of the grid that has several values,
    with bands and nulls, the reasons of failures, and a table of all cells with links to their own
    reports.

    Args:
        folder: folder of the sweep.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: the folder holds no sweep, or no table of results.
    """
    path = folder.root / REPORT
    write_whole(path, page(read_sweep_data(folder)).encode())
    return path
