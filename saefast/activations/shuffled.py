"""Batches of rows that can be read in any order: what tensors and files have in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.activations.order import Order
from saefast.activations.protocol import Batch, check_dtype, check_stream, dtype_name

Held = tuple[Tensor, Tensor | None]
"""Rows in memory, and the targets of the same rows."""


class Part(NamedTuple):
    """What one window gives to a batch."""

    x: Tensor
    target: Tensor | None
    rows: NDArray[np.int64]


_HASHED_WHOLE = 64 << 20
_SAMPLES = 64


class Shuffled(ABC):
    """Activations whose rows have numbers. A subclass says how to read them."""

    def __init__(self, *, rows: int, d: int, dtype: torch.dtype, block_rows: int, window_rows: int):
        check_dtype(dtype)
        self.rows = rows
        self.d = d
        self.dtype = dtype
        self._block_rows = min(block_rows, rows)
        self._window_rows = min(window_rows, rows)

    @abstractmethod
    def locate(self, row: int) -> str:
        """Where the row of this number lies, for an error message."""

    @abstractmethod
    def _reader(self) -> Callable[[list[tuple[int, int]]], Held]:
        """A function that gets the rows of these spans, laid end to end.

        What it returns is valid until it is called again.
        """

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """See `Activations.batches`."""
        check_stream(batch_size, seed, start)
        return self._batches(batch_size, seed, start)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, from the first to the last; the last batch may be shorter."""
        check_stream(batch_size, 0, 0)
        read = self._reader()
        for first in range(0, self.rows, batch_size):
            end = min(first + batch_size, self.rows)
            # A copy always: what was read is valid until the next read.
            x, target = (
                None if held is None else held.to(self.dtype, copy=True)
                for held in read([(first, end)])
            )
            assert x is not None
            where = f"{self.locate(first)} to {self.locate(end - 1)}"
            yield Batch(x, target, where, np.arange(first, end))

    def _batches(self, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        order = Order(self.rows, seed, self._block_rows, self._window_rows)
        read = self._reader()
        parts: list[Part] = []
        missing = batch_size
        for window in order.windows(start * batch_size):
            x, target = read(window.spans)
            taken = 0
            while taken < len(window.places):
                now = slice(taken, taken + missing)
                places = torch.from_numpy(window.places[now])
                goal = None if target is None else self._take(target, places)
                parts.append(Part(self._take(x, places), goal, window.rows[now]))
                taken += len(places)
                missing -= len(places)
                if missing == 0:
                    yield self._joined(parts)
                    parts, missing = [], batch_size

    def _take(self, held: Tensor, places: Tensor) -> Tensor:
        return held.index_select(0, places.to(held.device)).to(self.dtype)

    def _joined(self, parts: list[Part]) -> Batch:
        x, target, rows = parts[0]
        if len(parts) > 1:
            x = torch.cat([part.x for part in parts])
            rows = np.concatenate([part.rows for part in parts])
            targets = [part.target for part in parts if part.target is not None]
            target = torch.cat(targets) if targets else None
        where = f"{self.locate(int(rows.min()))} to {self.locate(int(rows.max()))}"
        return Batch(x, target, where, rows)

    @cached_property
    def fingerprint(self) -> str:
        """The hash of shape, dtype and content; of up to 64 samples of it above 64 MiB."""
        read = self._reader()
        x, target = read([(0, 1)])
        columns = [column for column in (x, target) if column is not None]
        row_bytes = sum(column[:1].numel() * column.element_size() for column in columns)
        whole = self.rows * row_bytes <= _HASHED_WHOLE
        step = max(1, _HASHED_WHOLE // (_SAMPLES * row_bytes))
        starts: Iterable[int] = range(0, self.rows, step)
        if not whole:
            starts = np.linspace(0, self.rows - step, _SAMPLES, dtype=np.int64).tolist()
        digest = hashlib.sha256()
        for column in columns:
            digest.update(f"{dtype_name(column.dtype)} {(self.rows, *column.shape[1:])};".encode())
        for first in starts:
            for part in read([(first, min(first + step, self.rows))]):
                if part is not None:
                    digest.update(_bytes(part))
        return f"{'sha256' if whole else 'sampled-sha256'}:{digest.hexdigest()[:32]}"


def _bytes(rows: Tensor) -> memoryview:
    return rows.cpu().contiguous().view(torch.uint8).numpy().data
