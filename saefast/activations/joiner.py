"""Store whose shards are written by several processes, in any order.

A process writes a shard and then its record, a file of JSON. The owner of the store appends
recorded shards to the index in order. Records end in `.part`, so a `StoreWriter` that resumes the
store with one process removes them, and writes the shards that the index lacks again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.activations.store import Kept, Shard
from saefast.activations.writer import StoreWriter, write_shard
from saefast.disk.atomic import PART, remove_file
from saefast.disk.tables import write_json

_RECORD = f".json{PART}"


class PlannedShard(NamedTuple):
    """Rows of a shard that is still to be written."""

    number: int
    """number of the shard, from 0"""
    first: int
    """number of its first row"""
    end: int
    """number after its last row"""


class StoreJoiner(StoreWriter):
    """Owner of a store whose shards other processes write with `write_planned`.

    The finished store has the bytes of one that a `StoreWriter` with the same arguments filled.

    Args:
        path: see `StoreWriter`.
        d: see `StoreWriter`.
        extras: columns beside the rows.
        dtype: see `StoreWriter`.
        rows_per_shard: number of rows in a shard.
        metadata: see `StoreWriter`.
        resume: see `StoreWriter`.
    """

    def __init__(
        self,
        path: str | Path,
        d: int,
        *,
        extras: Mapping[str, Kept],
        dtype: torch.dtype,
        rows_per_shard: int,
        metadata: dict[str, Any],
        resume: bool,
    ) -> None:
        super().__init__(
            path, d, dtype=dtype, rows_per_shard=rows_per_shard, metadata=metadata, resume=resume
        )
        self._extras = dict(extras)

    def missing(self, rows: int, about: str) -> list[PlannedShard]:
        """Return the shards that are neither in the index nor recorded.

        Args:
            rows: number of rows of the finished store.
            about: text that identifies the rows; shards that are recorded with another one are
                written again.
        """
        return [each for each in self._planned(rows) if self._recorded(each, about) is None]

    def join(self, rows: int, about: str) -> int:
        """Append the recorded shards that follow the index, and return its number of rows.

        Args:
            rows: see `missing`.
            about: see `missing`.

        Returns:
            Number of rows of the store.
        """
        found: list[Shard] = []
        for each in self._planned(rows):
            shard = self._recorded(each, about)
            if shard is None:
                break
            found.append(shard)
        if found:
            begun = len(self._index.shards)
            self._index = replace(
                self._index, extras=self._extras, shards=(*self._index.shards, *found)
            )
            self._write_index(self._index)
            for number in range(begun, len(self._index.shards)):
                remove_file(_record(self.path, number))
        return self.rows

    def finish(self) -> None:
        """Remove the files of interrupted processes, and release the folder."""
        super()._remove_unfinished()
        self.close()

    def _remove_unfinished(self) -> None:
        """Keep everything until `finish`: records of shards are continued."""

    def _planned(self, rows: int) -> list[PlannedShard]:
        begun, step = self._index.rows, self._rows_per_shard
        firsts = range(begun, rows, step)
        numbers = range(len(self._index.shards), len(self._index.shards) + len(firsts))
        return [
            PlannedShard(number, first, min(first + step, rows))
            for number, first in zip(numbers, firsts, strict=True)
        ]

    def _recorded(self, planned: PlannedShard, about: str) -> Shard | None:
        """Return the shard of a valid record; None if it must be written."""
        try:
            content = json.loads(_record(self.path, planned.number).read_bytes())
            shard = Shard(**content["shard"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        file = self.path / shard.name
        expected = [about, planned.first, planned.end - planned.first]
        valid = [content.get("about"), content.get("first"), shard.rows] == expected
        return shard if valid and file.is_file() and file.stat().st_size == shard.bytes else None


def write_planned(
    folder: Path, planned: PlannedShard, about: str, columns: Mapping[str, Tensor]
) -> None:
    """Write a shard and its record for the `StoreJoiner` of the store.

    Args:
        folder: folder of the store.
        planned: the shard.
        about: text that identifies the rows.
        columns: rows [n, d] and extras [n, ...] by name.
    """
    shard = write_shard(folder, planned.number, columns)
    content = {"about": about, "first": planned.first, "shard": asdict(shard)}
    write_json(_record(folder, planned.number), content)


def _record(folder: Path, number: int) -> Path:
    return folder / f"activations-{number:05d}{_RECORD}"
