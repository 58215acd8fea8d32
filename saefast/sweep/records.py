"""Content of the JSON files in the folder of a sweep, and differences from the sweep file."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SweepRecord:
    """Content of sweep.json."""

    axes: list[str]
    """names of the axes"""
    until: str
    """last stage of every cell"""
    cells: dict[str, dict[str, Any]]
    """value on each axis for each cell, by the name of the cell"""


@dataclass(frozen=True)
class DoneRecord:
    """Content of done.json, the machine and software that finished a cell."""

    machine: str
    """name of the machine"""
    processor: str
    """name of the processor"""
    device: str
    """device of the training"""
    commit: str | None
    """commit of the checkout that saefast was imported from; None for an installed package"""
    saefast: str
    """version of saefast"""
    torch: str
    """version of torch"""
    threads: int
    """number of threads of the process"""


@dataclass(frozen=True)
class FailureRecord:
    """Content of failure.json."""

    reason: str
    """reason of the failure, one line"""
    attempts: int
    """number of attempts of the task that failed"""


@dataclass(frozen=True)
class IntervalsRecord:
    """Content of intervals.json."""

    digest: str
    """digest of the stage stability from whose results the values were computed"""
    saes: list[dict[str, float | None]]
    """values for each SAE, by the name of the column"""


@dataclass(frozen=True)
class Changed:
    """Cell whose folder was begun with other settings than those in the sweep file."""

    cell: str
    """name of the cell"""
    differences: tuple[str, ...]
    """descriptions such as "train.lr was 0.1, is 0.2 now" """
    again: bool
    """whether its SAEs have to be trained again, instead of later stages alone"""
