"""The largest entries of every feature in a stream of any length, in constant memory."""

import torch
from torch import Tensor

_KEYS = 2**31 - 1
_LEAST_PENDING = 1 << 16


class Largest:
    """Lists of the `count` entries with the largest keys for each of m features.

    Among equal keys the first entries are kept. Entries are stored flat, sorted by feature and key.
    New entries are buffered until the buffer holds about half as many as can be kept, and are then
    sorted in; most are dropped at once because their key is below the last of a full list. A stream
    in random order is sorted about 2 + 2 ln(entries / count) times.
    """

    def __init__(self, m: int, count: int) -> None:
        self._m, self._count = m, count
        none = torch.zeros(0, dtype=torch.int64)
        # Feature and key are packed into one number that sorts in the order of the lists.
        self._place, self._row, self._token = none, none, none.int()
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting = 0
        # Keys at or below the floor are dropped; it is -1 while a list is not full.
        self._floor = torch.full((m,), -1, dtype=torch.int32)

    def add(self, feature: Tensor, key: Tensor, row: Tensor, token: Tensor) -> None:
        """Add entries [e]: features int64 with non-negative keys int32, found at `row`."""
        good = key > self._floor[feature]
        feature, key = feature[good], key[good].long()
        self._pending.append(((feature << 31) | (_KEYS - key), row[good], token[good].int()))
        self._waiting += len(feature)
        if self._waiting > max(_LEAST_PENDING, self._m * self._count // 2):
            self._sort_in()

    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys int32, rows int64 and tokens int32, [m, count] each.

        Entries are in descending order of their keys; -1 pads lists that are not full.
        """
        self._sort_in()
        feature, key, rank = self._sorted()
        lists = (
            torch.full((self._m, self._count), -1, dtype=dtype)
            for dtype in (torch.int32, torch.int64, torch.int32)
        )
        filled = tuple(
            kept.index_put_((feature, rank), values)
            for kept, values in zip(lists, (key, self._row, self._token), strict=True)
        )
        return filled[0], filled[1], filled[2]

    def _sort_in(self) -> None:
        if not self._pending:
            return
        columns = zip((self._place, self._row, self._token), *self._pending, strict=True)
        place, row, token = (torch.cat(parts) for parts in columns)
        self._pending, self._waiting = [], 0
        self._place, order = place.sort(stable=True)
        self._row, self._token = row[order], token[order]
        feature, key, rank = self._sorted()
        last = rank == self._count - 1
        self._floor[feature[last]] = key[last]
        kept = rank < self._count
        self._place, self._row, self._token = self._place[kept], self._row[kept], self._token[kept]

    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature, key and rank within the feature of every entry."""
        feature = self._place >> 31
        first = torch.searchsorted(feature, torch.arange(self._m))
        rank = torch.arange(len(feature)) - first[feature]
        return feature, (_KEYS - (self._place & _KEYS)).int(), rank
