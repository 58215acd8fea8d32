"""Order in which rows are drawn: shuffled again in every epoch, but read in long runs.

The rows are cut into blocks of consecutive rows. An epoch distributes the blocks at random over
windows and shuffles the rows within each window, which is what must fit in memory.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """Rows that are held in memory together."""

    spans: list[tuple[int, int]]
    """Ranges [first, end) of rows to read, ascending; adjacent blocks form one span."""
    places: NDArray[np.int64]
    """Position of each row within the concatenated spans, in the order of drawing."""
    rows: NDArray[np.int64]
    """Number of each row in the source, in the same order."""


class Order(NamedTuple):
    """Reproducible order of `rows` rows, epoch after epoch."""

    rows: int
    seed: int
    block_rows: int
    window_rows: int

    def windows(self, position: int) -> Iterator[Window]:
        """Yield windows endlessly, from the row numbered `position` on, counted over all epochs.

        Rows before `position` are counted, not read, at the cost of one permutation of blocks.
        """
        finished, skip = divmod(position, self.rows)
        for epoch in count(finished):
            for number, blocks in enumerate(self._deal(epoch)):
                size = self._size(blocks)
                if skip < size:
                    yield self._window(epoch, number, blocks, size, skip)
                skip = max(0, skip - size)

    def _deal(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the blocks of every window of an epoch, of equal number, so that all mix well."""
        blocks = -(-self.rows // self.block_rows)
        blocks_per_window = max(1, self.window_rows // self.block_rows)
        windows = -(-blocks // blocks_per_window)
        return np.array_split(permutation(blocks, self.seed, epoch, 0), windows)

    def _size(self, blocks: NDArray[np.int64]) -> int:
        ends = np.minimum((blocks + 1) * self.block_rows, self.rows)
        return int((ends - blocks * self.block_rows).sum())

    def _window(
        self, epoch: int, number: int, blocks: NDArray[np.int64], size: int, skip: int
    ) -> Window:
        first = np.sort(blocks) * self.block_rows
        end = np.minimum(first + self.block_rows, self.rows)
        # Only the last block of the source can be shorter, and it is the last one after sorting.
        held = (first[:, None] + np.arange(self.block_rows)).ravel()[:size]
        starts_span = np.concatenate([[True], first[1:] != end[:-1]])
        ends_span = np.concatenate([starts_span[1:], [True]])
        spans = list(zip(first[starts_span].tolist(), end[ends_span].tolist(), strict=True))
        places = permutation(size, self.seed, epoch, 1 + number)[skip:]
        return Window(spans, places, held[places])


def permutation(n: int, seed: int, *counter: int) -> NDArray[np.int64]:
    """Return the numbers below n in an order that depends only on the seed and the counter.

    NumPy guarantees the raw bits of a generator for all versions, but not the methods built on
    them, and training resumed under another version of NumPy must see the same rows.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=counter)).random_raw(n)
    return np.argsort(bits, kind="stable")
