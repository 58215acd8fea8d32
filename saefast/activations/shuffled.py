"""Batches of rows that can be read in any order, the common part of tensors and files."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.activations.order import Order, Window
from saefast.activations.protocol import Batch, check_dtype, check_stream, dtype_name

Held = tuple[Tensor, Tensor | None]
"""Rows in memory, and the targets of the same rows."""


Memory = Callable[[str, tuple[int, int], torch.dtype], Tensor]
"""Function that returns memory for the next batch of "x" or "target", by shape and dtype."""

_HASHED_WHOLE = 64 << 20
_SAMPLES = 64


class Shuffled(ABC):
    """Activations whose rows are numbered; a subclass implements how they are read."""

    def __init__(self, *, rows: int, d: int, dtype: torch.dtype, block_rows: int, window_rows: int):
        check_dtype(dtype)
        self.rows = rows
        self.d = d
        self.dtype = dtype
        self._block_rows = min(block_rows, rows)
        self._window_rows = min(window_rows, rows)

    @abstractmethod
    def locate(self, row: int) -> str:
        """See `Activations.locate`."""

    @abstractmethod
    def _reader(self) -> Callable[[list[tuple[int, int]]], Held]:
        """Return a function that reads the rows of these spans, concatenated.

        Its result is valid until the next call.
        """

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, memory: Memory | None = None
    ) -> Iterator[Batch]:
        """Yield batches, see `Activations.batches`.

        Args:
            batch_size: number of rows in a batch.
            seed: seed of the order of the rows.
            start: number of the first batch to yield.
            memory: memory(name, shape, dtype) returns a tensor [batch_size, width] for a batch of
                rows on the CPU; None: new memory for each. If it is given, each window is read
                while batches are drawn from the one before, which takes the memory of a second
                window: steps on a device can be shorter than reading.

        Returns:
            Iterator over batches of rows [batch_size, d].
        """
        check_stream(batch_size, seed, start)
        order = Order(self.rows, seed, self._block_rows, self._window_rows)
        windows = order.windows(start * batch_size)
        held = self._held(windows) if memory is None else self._held_ahead(windows)
        return self._batches(held, batch_size, memory or _new_memory)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every row once, in order.

        Args:
            batch_size: number of rows in a batch.

        Yields:
            Batches of rows [batch_size, d]; the last one may be shorter.
        """
        check_stream(batch_size, 0, 0)
        read = self._reader()
        for first in range(0, self.rows, batch_size):
            end = min(first + batch_size, self.rows)
            # Always copy: rows that were read are valid only until the next read.
            x, target = (
                None if held is None else held.to(self.dtype, copy=True)
                for held in read([(first, end)])
            )
            assert x is not None
            where = f"{self.locate(first)} to {self.locate(end - 1)}"
            yield Batch(x, target, where, np.arange(first, end))

    def _held(self, windows: Iterator[Window]) -> Iterator[tuple[Window, Held]]:
        """Yield each window and its rows, which are valid until the next one is taken."""
        read = _once(self._reader())
        for window in windows:
            yield window, read(window.spans)

    def _held_ahead(self, windows: Iterator[Window]) -> Iterator[tuple[Window, Held]]:
        """Yield the same, reading one window ahead in a thread."""
        readers = cycle((_once(self._reader()), _once(self._reader())))

        def read() -> tuple[Window, Held]:
            window = next(windows)
            return window, next(readers)(window.spans)

        with ThreadPoolExecutor(1, "windows") as pool:
            coming = pool.submit(read)
            while True:
                held = coming.result()
                coming = pool.submit(read)
                yield held

    def _batches(
        self, windows: Iterator[tuple[Window, Held]], batch_size: int, memory: Memory
    ) -> Iterator[Batch]:
        columns: list[Tensor] = []
        numbers = np.empty(0, np.int64)
        for window, both in windows:
            held = [rows for rows in both if rows is not None]
            taken = 0
            while taken < len(window.places):
                filled = len(numbers)
                if filled == 0:
                    columns = self._room(held, batch_size, memory)
                now = slice(taken, taken + batch_size - filled)
                places = torch.from_numpy(window.places[now])
                for rows, column in zip(held, columns, strict=True):
                    _take(rows, places, column[filled : filled + len(places)])
                numbers = np.concatenate([numbers, window.rows[now]])
                taken += len(places)
                if len(numbers) == batch_size:
                    yield self._batch(columns, numbers)
                    numbers = numbers[:0]

    def _room(self, held: list[Tensor], batch_size: int, memory: Memory) -> list[Tensor]:
        """Allocate memory for a batch, on the device of the rows."""
        room = []
        for name, rows in zip(("x", "target"), held, strict=False):
            shape = (batch_size, rows.shape[1])
            if rows.device.type == "cpu":
                room.append(memory(name, shape, self.dtype))
            else:
                room.append(rows.new_empty(shape, dtype=self.dtype))
        return room

    def _batch(self, columns: list[Tensor], numbers: NDArray[np.int64]) -> Batch:
        where = f"{self.locate(int(numbers.min()))} to {self.locate(int(numbers.max()))}"
        return Batch(columns[0], columns[1] if len(columns) > 1 else None, where, numbers)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shape, dtype and content; above 64 MiB, of 64 samples of the content."""
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


def _once(read: Callable[[list[tuple[int, int]]], Held]) -> Callable[[list[tuple[int, int]]], Held]:
    """Return the function `read` that keeps its result and does not read the same rows again.

    Where one window holds all rows, no epoch after the first one reads or computes them.
    """
    kept: tuple[list[tuple[int, int]], Held] | None = None

    def read_once(spans: list[tuple[int, int]]) -> Held:
        nonlocal kept
        if kept is None or kept[0] != spans:
            kept = None  # before more memory is allocated
            kept = spans, read(spans)
        return kept[1]

    return read_once


def _new_memory(_name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def _take(rows: Tensor, places: Tensor, into: Tensor) -> None:
    """Copy the rows at `places` to `into`, whose dtype may differ."""
    places = places.to(rows.device)
    if rows.dtype == into.dtype:
        torch.index_select(rows, 0, places, out=into)
    else:
        into.copy_(rows.index_select(0, places))


def _bytes(rows: Tensor) -> memoryview:
    return rows.cpu().contiguous().view(torch.uint8).numpy().data
