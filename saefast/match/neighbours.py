"""The nearest features of another dictionary, exactly, without a matrix of all similarities."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from saefast.match.engines import Encode, Engine
from saefast.match.saved import Unfinished
from saefast.types import SparseCode
from saefast.unit_rows import UnitRows

_ROWS = 32_768  # searched for at a time: so many that preparing the others is not felt
_BLOCK = 2**18  # features at most, so that there is something to keep every minute
_SAMPLE = 256  # features whose true neighbours an approximate index is measured by
_COPIES = 4  # of a block of others: float64, its opposites, and what an engine packs

Report = Callable[[int], object]
"""Called with the number of pairs looked at since its last call"""


def _silent(_: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Search:
    """Two dictionaries, and how pairs of their features are looked for."""

    x: UnitRows
    y: UnitRows
    engine: Engine
    absolute: bool
    """whether opposite directions are alike"""
    memory: float
    """bytes for blocks, while neighbours are looked for, and for arcs afterwards"""
    report: Report = _silent
    saved: Unfinished = field(default_factory=Unfinished)
    """what is kept of the search until it is finished"""


def nearest(
    x: UnitRows,
    others: UnitRows,
    k: int,
    engine: Engine,
    memory: float,
    price: Tensor | None = None,
    report: Report = _silent,
) -> SparseCode:
    """The k of `others` that are most similar to each of `x`, or gain most after their price.

    Values descend, equal values in order of their index, float64; the same for any `memory` and
    any exact engine. `memory`: bytes that blocks may take.
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

    Each block of either is made once for each of the other's: what is read from disk serves both.
    It goes on from what an interrupted search has saved.
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
            searched=torch.tensor(number + 1),
            **forward.named("forward"),
            **backward.named("backward"),
        )
    return forward.lists(), backward.lists()


def recall(search: Search, found: SparseCode) -> float:
    """Return the share of the true neighbours of a sample of x's features that lists hold.

    Args:
        search: the search that found them.
        found: the lists of all of x's features.
    """
    x, k = search.x, found.indices.shape[1]
    rows = torch.arange(0, len(x), max(1, len(x) // _SAMPLE), device=x.device)[:_SAMPLE]
    true = nearest(x.subset(rows), search.y, k, Encode(search.absolute), 2.0**30)
    hits = (true.indices[:, :, None] == found.indices[rows][:, None, :]).any(2)
    return float(hits.double().mean())


def block_rows(width: int, memory: float) -> int:
    """How many features of that width a block may have."""
    return min(_BLOCK, max(1024, int(memory / (8 * width * _COPIES))))


class _Best:
    """The k best of each row so far, over blocks of others that come in ascending order."""

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
        """What `named` gave, if it is among the tensors."""
        if f"{name}.values" not in tensors:
            return None
        return cls(tensors[f"{name}.values"].to(device), tensors[f"{name}.indices"].to(device))

    def named(self, name: str) -> dict[str, Tensor]:
        """For a file."""
        return {f"{name}.values": self._values, f"{name}.indices": self._indices}

    def take(self, row: int, found: SparseCode, start: int) -> None:
        """What was found for the rows from `row` in the block that begins at `start`."""
        rows = slice(row, row + len(found.values))
        values = torch.cat([self._values[rows], found.values], 1)
        indices = torch.cat([self._indices[rows], found.indices + start], 1)
        # Stable: of equals those of the earlier block, whose indices are lower, come first.
        order = values.sort(dim=1, descending=True, stable=True).indices[:, : self._values.shape[1]]
        self._values[rows] = values.gather(1, order)
        self._indices[rows] = indices.gather(1, order)

    def lists(self) -> SparseCode:
        return SparseCode(self._values, self._indices)
