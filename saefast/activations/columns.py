"""Rows of activations on disk, as byte ranges of files that are read into memory.

Files are read, not mapped. So the memory taken is bounded by the window and not by the pages that
the operating system keeps, and a file truncated during training raises an error that names it,
instead of a bus error.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.activations.file_bytes import Pieces, read_exactly
from saefast.activations.protocol import stored_dtype
from saefast.activations.shuffled import Held, Shuffled

BLOCK_BYTES = 1 << 20
"""Bytes that are read at once: enough for fast reads, few enough to mix documents well."""
WINDOW_BYTES = 256 << 20
"""Bytes of rows that are shuffled together, which is the memory that a stream takes."""


class Span(NamedTuple):
    """Consecutive rows in one file, beginning at byte `offset`."""

    path: Path
    offset: int
    rows: int
    pieces: Pieces | None = None
    """checksums with which the bytes are compared when they are read"""


class Column:
    """Array [rows, *tail] stored in pieces on disk."""

    def __init__(self, spans: Sequence[Span], tail: tuple[int, ...], dtype: torch.dtype):
        self._spans = spans
        self._ends = list(accumulate(span.rows for span in spans))
        self.tail = tail
        self.dtype = dtype
        self.rows = self._ends[-1] if spans else 0
        self.row_bytes = math.prod(tail) * dtype.itemsize

    def locate(self, row: int) -> str:
        """Return the file of a row and the row's number in it."""
        span = bisect_right(self._ends, row)
        # A file can hold several spans (Arrow's batches), and rows are counted within the file.
        path = self._spans[span].path
        first = span
        while first > 0 and self._spans[first - 1].path == path:
            first -= 1
        return f"{path}, row {row - self._begin(first)}"

    def empty(self, rows: int) -> Tensor:
        """Allocate memory [rows, *tail]."""
        return torch.empty(rows, *self.tail, dtype=self.dtype, device="cpu")

    def read(self, first: int, end: int, into: Tensor) -> None:
        """Fill `into`, contiguous [end - first, *tail], with the rows [first, end)."""
        memory = into.flatten().view(torch.uint8).numpy().data
        while first < end:
            span = bisect_right(self._ends, first)
            path, offset, _, pieces = self._spans[span]
            rows = min(end, self._ends[span]) - first
            size = rows * self.row_bytes
            read = read_exactly if pieces is None else pieces.read
            read(path, offset + (first - self._begin(span)) * self.row_bytes, memory[:size])
            memory = memory[size:]
            first += rows

    def _begin(self, span: int) -> int:
        return self._ends[span] - self._spans[span].rows


class FileActivations(Shuffled):
    """Activations read from a column on disk, with targets from another one if given.

    Args:
        x: column of rows [n, d].
        target: column of targets [n, d_out], for a transcoder; None: x is reconstructed.
        dtype: dtype of the batches; None: as stored, but float32 unless that is a half precision.
        block_rows: consecutive rows that are read at once; None: 1 MiB of them.
        window_rows: rows that are shuffled together in memory; None: 256 MiB of them.
    """

    def __init__(
        self,
        x: Column,
        target: Column | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
        block_rows: int | None = None,
        window_rows: int | None = None,
    ):
        self._columns = [x] if target is None else [x, target]
        row_bytes = sum(column.row_bytes for column in self._columns)
        super().__init__(
            rows=x.rows,
            d=x.tail[0],
            dtype=dtype or stored_dtype(*(column.dtype for column in self._columns)),
            block_rows=block_rows or max(1, BLOCK_BYTES // row_bytes),
            window_rows=window_rows or max(1, WINDOW_BYTES // row_bytes),
        )

    def locate(self, row: int) -> str:
        """See `Activations.locate`."""
        return self._columns[0].locate(row)

    def _reader(self) -> Callable[[list[tuple[int, int]]], Held]:
        buffers = [column.empty(0) for column in self._columns]

        def read(spans: list[tuple[int, int]]) -> Held:
            rows = sum(end - first for first, end in spans)
            for number, column in enumerate(self._columns):
                # Windows differ in size by a block at most, so buffers are reused between reads.
                if len(buffers[number]) < rows:
                    buffers[number] = column.empty(rows)
                place = 0
                for first, end in spans:
                    column.read(first, end, buffers[number][place : place + end - first])
                    place += end - first
            held = [buffer[:rows] for buffer in buffers]
            return held[0], held[1] if len(held) > 1 else None

        return read
