"""Exact search of the nearest features of another dictionary, in blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from saefast.match.engines import Encode, Engine
from saefast.match.saved import Unfinished
from saefast.types import SparseCode
from saefast.unit_rows import UnitRows

_ROWS = 32_768  # queries at a time, enough that the time to prepare a block is negligible
_BLOCK = 2**18  # maximum number of features, so that progress can be saved every minute
_SAMPLE = 256  # features whose true neighbours the recall of an approximate index is measured on
_COPIES = 4  # of a block of others: float64, its opposites, and packed copies of an engine

Report = Callable[[int], object]
"""Function that is called with the number of pairs compared since its last call"""


def _silent(_: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Search:
    """Two dictionaries and the settings of a search for pairs of their features."""

    x: UnitRows
    """alive features of the first dictionary"""
    y: UnitRows
    """alive features of the second dictionary"""
    engine: Engine
    """engine of the neighbour search"""
    absolute: bool
    """whether opposite directions count as similar"""
    memory: float
    """bytes for blocks during the neighbour search, and for arcs afterwards"""
    report: Report = _silent
    """progress callback"""
    saved: Unfinished = field(default_factory=Unfinished)
    """state of the search that is kept until it is finished"""


def nearest(
    x: UnitRows,
    others: UnitRows,
    k: int,
    engine: Engine,
    memory: float,
    price: Tensor | None = None,
    report: Report = _silent,
) -> SparseCode:
    """Find the k of `others` most similar to each of `x`, by similarity minus price if given.

    The result is the same for any `memory` and any exact engine.

    Args:
        x: rows whose neighbours are searched.
        others: rows among which they are searched.
        k: number of neighbours.
        engine: engine of the search.
        memory: bytes that blocks may take.
        price: [len(others)] float64; None: no prices.
        report: progress callback.

    Returns:
        Values [len(x), k] float64 and indices, by descending value, then ascending index.
    """
    best = _Best.empty(len(x), k, x.device)
    step = block_rows(others.width, memory / 2)
    at_once = min(_ROWS, step)
    for start in range(0, len(others), step):
        block = others.block(start, start + step)
        find = engine.prepare(block, None if price is None else price[start : start + len(block)])
        for row in range(0, len(x), at_once):
            rows = x.block(row, row + at_once)
            best.take(row, find(rows, min(k, len(block))), start)
            report(len(rows) * len(block))
    return best.lists()


def nearest_both_ways(search: Search, k: int) -> tuple[SparseCode, SparseCode]:
    """Find the k of y nearest to each of x, and the k of x nearest to each of y.

    Both directions are searched with the same blocks, so each block of x is read only once for each
    block of y. The search resumes from the saved state of an interrupted one.

    Returns:
        Neighbours [m, k] of x, and [m2, k] of y.
    """
    x, y, engine, saved = search.x, search.y, search.engine, search.saved
    forward, backward = (
        _Best.begun(name, saved.tensors, side.device) or _Best.empty(len(side), k, side.device)
        for name, side in (("forward", x), ("backward", y))
    )
    step = block_rows(y.width, search.memory / 2)
    blocks = list(product(range(0, len(y), step), range(0, len(x), step)))
    done = int(saved.tensors.get("searched", 0))
    prepared = None
    for number, (column, row) in enumerate(blocks):
        if number < done:
            search.report(2 * min(step, len(y) - column) * min(step, len(x) - row))
            continue
        if column != prepared:
            columns = y.block(column, column + step)
            find_columns = engine.prepare(columns, None)
            prepared = column
        rows = x.block(row, row + step)
        find_rows = engine.prepare(rows, None)
        for part in range(0, len(rows), _ROWS):
            piece = rows[part : part + _ROWS]
            forward.take(row + part, find_columns(piece, min(k, len(columns))), column)
            search.report(len(piece) * len(columns))
        for part in range(0, len(columns), _ROWS):
            piece = columns[part : part + _ROWS]
            backward.take(column + part, find_rows(piece, min(k, len(rows))), row)
            search.report(len(piece) * len(rows))
        saved.keep(
            searched=torch.tensor(number + 1, device="cpu"),
            **forward.named("forward"),
            **backward.named("backward"),
        )
    return forward.lists(), backward.lists()


def recall(search: Search, found: SparseCode) -> float:
    """Return the recall of neighbour lists on a sample of the features of x.

    Args:
        search: the search that found the lists.
        found: lists of all features of x.

    Returns:
        Share of the true neighbours of the sample that are in their lists.
    """
    x, k = search.x, found.indices.shape[1]
    rows = torch.arange(0, len(x), max(1, len(x) // _SAMPLE), device=x.device)[:_SAMPLE]
    true = nearest(x.subset(rows), search.y, k, Encode(search.absolute), 2.0**30)
    hits = (true.indices[:, :, None] == found.indices[rows][:, None, :]).any(2)
    return float(hits.double().mean())


def block_rows(width: int, memory: float) -> int:
    """Return the maximum number of features in a block, given their width and bytes of memory."""
    return min(_BLOCK, max(1024, int(memory / (8 * width * _COPIES))))


class _Best:
    """The k best of each row so far, over blocks of others in ascending order."""

    def __init__(self, values: Tensor, indices: Tensor) -> None:
        self._values, self._indices = values, indices

    @classmethod
    def empty(cls, rows: int, k: int, device: torch.device) -> "_Best":
        values = torch.full((rows, k), -torch.inf, dtype=torch.float64, device=device)
        return cls(values, torch.full((rows, k), -1, device=device))

    @classmethod
    def begun(
        cls, name: str, tensors: Mapping[str, Tensor], device: torch.device
    ) -> "_Best | None":
        """Restore the state that `named` returned; None if the tensors lack it."""
        if f"{name}.values" not in tensors:
            return None
        return cls(tensors[f"{name}.values"].to(device), tensors[f"{name}.indices"].to(device))

    def named(self, name: str) -> dict[str, Tensor]:
        """Return the state as tensors by name, to be saved."""
        return {f"{name}.values": self._values, f"{name}.indices": self._indices}

    def take(self, row: int, found: SparseCode, start: int) -> None:
        """Merge lists of the rows from `row` in the block that begins at `start`."""
        rows = slice(row, row + len(found.values))
        values = torch.cat([self._values[rows], found.values], 1)
        indices = torch.cat([self._indices[rows], found.indices + start], 1)
        # The sort is stable: equal values of the earlier block, with lower indices, come first.
        order = values.sort(dim=1, descending=True, stable=True).indices[:, : self._values.shape[1]]
        self._values[rows] = values.gather(1, order)
        self._indices[rows] = indices.gather(1, order)

    def lists(self) -> SparseCode:
        return SparseCode(self._values, self._indices)
