"""Part of a harvest: some shards of its stores, written from stored tokens by any process."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.activations.joiner import PlannedShard, write_planned
from saefast.activations.store import ROWS
from saefast.activations.writer import check_range
from saefast.lm.harvest_plan import POSITIONS, TOKENS
from saefast.lm.model import LanguageModel
from saefast.lm.padded import BatchCapture
from saefast.lm.sites import find_sites
from saefast.lm.stored_tokens import StoredTokens


class PartOfStore(NamedTuple):
    """Shards of one store."""

    path: Path
    """folder of the store"""
    site: str
    """name of the site"""
    shards: list[PlannedShard]
    """shards to write, in order"""


def write_part(
    model: LanguageModel,
    stores: Sequence[PartOfStore],
    tokens: Path,
    about: str,
    *,
    drop_bos: bool,
    dtype: torch.dtype,
) -> None:
    """Run the model on the batches that hold rows of shards, and write these shards.

    The batches are those of a harvest by one process, so their rows have the same bits. A batch
    on the border of two parts is computed for both.

    Args:
        model: the model.
        stores: shards of each store.
        tokens: file of `write_tokens`.
        about: its hash.
        drop_bos: as in the `Packing`.
        dtype: dtype of the stores.
    """
    stored = StoredTokens(tokens)
    captured = BatchCapture(model, find_sites(model.model, [store.site for store in stores]))
    filling = [_Filling(store, about, dtype) for store in stores]
    numbers = {
        number
        for store in stores
        for shard in store.shards
        for number in stored.numbers(shard.first, shard.end)
    }
    for number in sorted(numbers):
        batch = stored.batch(number, model.tokenizer, drop_bos)
        seen = captured(batch)
        kept = batch.kept
        extras = {
            TOKENS: batch.ids[kept].to(torch.int32),
            POSITIONS: kept.nonzero()[:, 1].to(torch.int32),
        }
        for each, activations in zip(filling, seen, strict=True):
            rows = activations[kept.to(activations.device)].cpu()
            each.take(stored.ends[number], {ROWS: rows, **extras})


class _Filling:
    """Shards of one store, which are filled in order and written when they are full."""

    def __init__(self, store: PartOfStore, about: str, dtype: torch.dtype) -> None:
        self._store, self._about, self._dtype = store, about, dtype
        self._left = deque(store.shards)
        self._columns: dict[str, Tensor] = {}

    def take(self, first: int, columns: dict[str, Tensor]) -> None:
        """Copy the rows of a batch, whose first has the number `first`, into the shards."""
        end = first + len(columns[ROWS])
        while self._left and self._left[0].first < end:
            shard = self._left[0]
            begin, stop = max(first, shard.first), min(end, shard.end)
            if begin >= stop:  # a batch before the shard, which another store needs
                return
            check_range(columns[ROWS][begin - first : stop - first], self._dtype)
            for name, values in columns.items():
                room = self._room(name, values, shard.end - shard.first)
                room[begin - shard.first : stop - shard.first] = values[
                    begin - first : stop - first
                ]
            if stop < shard.end:
                return
            write_planned(self._store.path, shard, self._about, self._columns)
            self._columns = {}
            self._left.popleft()

    def _room(self, name: str, values: Tensor, rows: int) -> Tensor:
        if name not in self._columns:
            dtype = self._dtype if name == ROWS else values.dtype
            self._columns[name] = torch.empty(rows, *values.shape[1:], dtype=dtype)
        return self._columns[name]


def part_to_dict(store: PartOfStore) -> dict[str, Any]:
    """Return the shards of a store as values that JSON can represent."""
    return {"path": str(store.path), "site": store.site, "shards": [list(s) for s in store.shards]}


def part_from(record: dict[str, Any]) -> PartOfStore:
    """Restore the result of `part_to_dict`."""
    shards = [PlannedShard(*shard) for shard in record["shards"]]
    return PartOfStore(Path(record["path"]), record["site"], shards)
