"""The largest entries of every feature in a stream of any length, in constant memory."""

import torch
from torch import Tensor

_KEYS = 2**31 - 1
_LEAST_PENDING = 1 << 16


class Largest:
    """The `count` entries of each of m features with the largest keys; of equal ones the first.

    Entries are kept flat, sorted by feature and key. New ones wait until there are about half as
    many as can be kept, and are then sorted in; most never wait, since they are below what a full
    list ends in. A stream in random order is sorted about 2 + 2 ln(entries / count) times.
    """

    def __init__(self, m: int, count: int) -> None:
        self._m, self._count = m, count
        none = torch.zeros(0, dtype=torch.int64)
        # Feature and key in one number whose order is that of the list.
        self._place, self._row, self._token = none, none, none.int()
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting = 0
        # What a key must be above; -1 while a list is not full.
        self._floor = torch.full((m,), -1, dtype=torch.int32)

    def add(self, feature: Tensor, key: Tensor, row: Tensor, token: Tensor) -> None:
        """Entries [e] of features int64 with keys int32, not negative, found at `row`."""
        good = key > self._floor[feature]
        feature, key = feature[good], key[good].long()
        self._pending.append(((feature << 31) | (_KEYS - key), row[good], token[good].int()))
        self._waiting += len(feature)
        if self._waiting > max(_LEAST_PENDING, self._m * self._count // 2):
            self._sort_in()

    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """[m, count] each, largest first: keys int32, rows int64, tokens int32; -1 fills up."""
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
        """The feature, key and rank within the feature of every entry."""
        feature = self._place >> 31
        first = torch.searchsorted(feature, torch.arange(self._m))
        rank = torch.arange(len(feature)) - first[feature]
        return feature, (_KEYS - (self._place & _KEYS)).int(), rank
