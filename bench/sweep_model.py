"""Model of a sweep on many machines, from the costs that `bench sweep` measures.

It assumes that machines are alike, do not fail, and read rows as fast as one machine does.
"""

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

MACHINES = (10, 30, 100, 300, 1000)
STORES = 4
STREAMS = 16
SIZES = (1, 2, 4)
"""Relative training times of the cells of a stream"""
CELLS_OF_SIZE = 24
CELLS = STREAMS * len(SIZES) * CELLS_OF_SIZE
TRAINING = 1800.0
"""Mean seconds of training a cell on one machine"""
LATER = 0.25
"""Time of the later stages of a cell, as a share of its training"""
HARVEST = 1800.0
"""Seconds of a harvest on one machine"""


class Costs(NamedTuple):
    """Measured seconds."""

    start: float
    """of the start of a worker"""
    task: float
    """of a task beside its stages"""
    driver: float
    """of the driver for each task"""
    table: float
    """of table and report without cells"""
    table_per_cell: float


class _Work(NamedTuple):
    """Task of the model."""

    seconds: float
    after: tuple["_Work", ...] = ()


def simulated(machines: int, way: str, costs: Costs) -> dict[str, Any]:
    """Return the modelled time of a sweep.

    Args:
        machines: number of machines.
        way: "ray", for one driver of all machines, or "share", for a driver on each machine.
        costs: measured costs.
    """
    ends = (_on_ray if way == "ray" else _in_shares)(machines, costs)
    end = _with_tables(ends, costs.table + CELLS * costs.table_per_cell)
    training = CELLS * TRAINING
    return {
        "machines": machines,
        "cells": CELLS,
        "hours": round(end / 3600, 3),
        "training_share": round(training / (machines * end), 4),
        "table_minutes": round((end - max(ends)) / 60, 2),
    }


def _with_tables(ends: Sequence[float], seconds: float) -> float:
    """Return the end of a sweep whose drivers write table and report, one at a time.

    A driver that waited while two tables were written does not write another one.

    Args:
        ends: end of the cells of each driver.
        seconds: time of table and report.
    """
    written: list[float] = []
    last = 0.0
    for end in sorted(ends):
        begun = max(end, last)
        if bisect_right(written, begun) < bisect_right(written, end) + 2:
            last = begun + seconds
            written.append(last)
    return max(last, *ends)


def _cells() -> list[float]:
    """Return the training seconds of the cells of a stream."""
    unit = TRAINING * len(SIZES) / sum(SIZES)
    return [size * unit for size in SIZES for _ in range(CELLS_OF_SIZE)]


def _grouped(cells: Sequence[float], groups: int) -> list[list[float]]:
    """Divide cells into groups of similar time, as sweeps do."""
    found: list[list[float]] = [[] for _ in range(min(groups, len(cells)))]
    for cell in sorted(cells, reverse=True):
        min(found, key=sum).append(cell)
    return found


def _on_ray(machines: int, costs: Costs) -> list[float]:
    """Return the end of the last task on machines that take the next task when they are idle."""
    groups = math.ceil(machines / STREAMS)
    trainings = tuple(
        _Work(sum(group), tuple(_Work(LATER * cell) for cell in group))
        for _ in range(STREAMS // STORES)
        for group in _grouped(_cells(), groups)
    )
    waiting = deque([_Work(HARVEST, trainings)] * STORES)
    idle = [costs.start] * machines
    running: list[tuple[float, int, _Work]] = []
    now = driver = 0.0
    number = 0
    while waiting or running:
        while waiting and idle:
            work = waiting.popleft()
            driver = max(driver, now) + costs.driver
            begun = max(heapq.heappop(idle), driver)
            heapq.heappush(running, (begun + costs.task + work.seconds, number, work))
            number += 1
        now, _, work = heapq.heappop(running)
        heapq.heappush(idle, now)
        waiting.extend(work.after)
    return [now]


def _in_shares(machines: int, costs: Costs) -> list[float]:
    """Return the end of each machine, which has a fixed share of the cells.

    The first machine that needs a store harvests it, others wait.
    """
    harvested = costs.start + costs.task + HARVEST
    cells = [(stream, cell) for stream in range(STREAMS) for cell in _cells()]
    ends = [harvested] * machines
    streams: list[set[int]] = [set() for _ in range(machines)]
    for rank, (stream, cell) in enumerate(cells):
        machine = rank * machines // len(cells)
        ends[machine] += cell * (1 + LATER) + costs.task
        streams[machine].add(stream)
    return [end + len(own) * costs.task for end, own in zip(ends, streams, strict=True)]
