"""The nearest features of another dictionary, exactly, without a matrix of all similarities."""

from collections.abc import Callable, Mapping
from itertools import product

import torch
from torch import Tensor

from saefast.match.engines import Engine
from saefast.match.unfinished import Unfinished
from saefast.types import SparseCode
from saefast.unit_rows import UnitRows

_ROWS = 32_768  # searched for at a time: so many that preparing the others is not felt
_BLOCK = 2**18  # features at most, so that there is something to keep every minute
_COPIES = 4  # of a block of others: float64, its opposites, and what an engine packs

Report = Callable[[int], object]
"""Told how many pairs have been looked at since it was last called"""


def nearest(
    x: UnitRows,
    others: UnitRows,
    k: int,
    engine: Engine,
    memory: float,
    price: Tensor | None = None,
    report: Report = lambda _: None,
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


def nearest_both_ways(
    x: UnitRows,
    y: UnitRows,
    k: int,
    engine: Engine,
    memory: float,
    report: Report = lambda _: None,
    unfinished: Unfinished | None = None,
) -> tuple[SparseCode, SparseCode]:
    """The k of `y` nearest to each of `x`, and the k of `x` nearest to each of `y`.

    Each block of either is made once for each of the other's: what is read from disk serves both.
    It goes on from what is known of an `unfinished` search with the same arguments.
    """
    unfinished = unfinished or Unfinished()
    forward, backward = (
        _Best.begun(name, unfinished.tensors, side.device) or _Best.empty(len(side), k, side.device)
        for name, side in (("forward", x), ("backward", y))
    )
    step = block_rows(y.width, memory / 2)
    blocks = list(product(range(0, len(y), step), range(0, len(x), step)))
    done = int(unfinished.tensors.get("searched", 0))
    prepared = None
    for number, (column, row) in enumerate(blocks):
        if number < done:
            report(2 * min(step, len(y) - column) * min(step, len(x) - row))
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
            report(len(piece) * len(columns))
        for part in range(0, len(columns), _ROWS):
            piece = columns[part : part + _ROWS]
            backward.take(column + part, find_rows(piece, min(k, len(rows))), row)
            report(len(piece) * len(rows))
        unfinished.keep(
            searched=torch.tensor(number + 1),
            **forward.named("forward"),
            **backward.named("backward"),
        )
    return forward.lists(), backward.lists()


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
