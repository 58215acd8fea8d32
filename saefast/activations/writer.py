"""Write a store of activations shard by shard, so that a killed process loses at most one."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.protocol import check_dtype, dtype_name
from saefast.activations.safetensors_file import DTYPES as STORED_DTYPES
from saefast.activations.store import INDEX, ROWS, Index, Kept, Shard, read_index
from saefast.activations.tensors import as_rows
from saefast.disk.atomic import PART, remove_file, write_tensors_in_pieces
from saefast.disk.lock import Claim
from saefast.disk.resume import refuse_existing
from saefast.disk.tables import write_json

_SHARD_BYTES = 256 << 20


class StoreWriter:
    """Writer of a store; leaving its `with` statement writes the last, shorter shard.

    Every shard and every index is on disk before it gets its name. If the process is killed, or the
    `with` statement is left by an exception, the store holds the shards written before, and
    `resume=True` continues after them: `rows` is the number of rows that they hold.

    Args:
        path: folder of the store.
        d: width of a row.
        dtype: dtype in which rows are stored.
        rows_per_shard: number of rows in a shard, one of which is held in memory; None: 256 MiB of
            them.
        metadata: any JSON value that describes the origin of the activations; None: {}, or the
            metadata of the store that is resumed.
        resume: continue an existing store; False: an existing one is an error.
    """

    def __init__(
        self,
        path: str | Path,
        d: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        rows_per_shard: int | None = None,
        metadata: dict[str, Any] | None = None,
        resume: bool = False,
    ):
        checks.whole("d", d, 1)
        check_dtype(dtype)
        if rows_per_shard is None:
            rows_per_shard = max(1, _SHARD_BYTES // (d * dtype.itemsize))
        checks.whole("rows_per_shard", rows_per_shard, 1)
        try:
            json.dumps(metadata)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metadata must be serialisable as JSON: {error}") from error
        self.path = Path(path)
        self._rows_per_shard = rows_per_shard
        self._filling: dict[str, Tensor] = {}
        self._filled = 0
        self._open = True
        self._claim = Claim(self.path)
        try:
            if (self.path / INDEX).exists():
                self._index = self._resumed(d, dtype, metadata, resume)
            else:
                self._index = Index(d, dtype, metadata=metadata or {})
                self._begin()
        except BaseException:  # the traceback of a kept error refers to this writer
            self._end()
            raise

    @property
    def rows(self) -> int:
        """Number of rows appended so far, including those of a resumed store."""
        return self._index.rows + self._filled

    def append(self, rows: Tensor, **extras: Tensor) -> None:
        """Append rows, and extras beside them.

        Args:
            rows: [n, d], converted to the dtype of the store.
            **extras: tensors [n, ...] stored beside the rows under their names. Every call must
                give the same extras, in the same dtypes.
        """
        if not self._open:
            raise ValueError(
                f"the writer of {self.path} is closed or has failed; continue with "
                f"StoreWriter(path, resume=True)"
            )
        if not isinstance(rows, Tensor):
            raise TypeError(f"rows must be a torch.Tensor [n, d], got {type(rows).__name__}")
        given = {ROWS: as_rows("rows", rows), **extras}
        checks.size("rows", rows, 1, self._index.d, "the d of the store")
        self._check_extras(len(rows), extras)
        check_range(given[ROWS], self._index.dtype)
        taken = 0
        while taken < len(rows):
            count = min(len(rows) - taken, self._rows_per_shard - self._filled)
            for name, values in given.items():
                self._room(name)[self._filled : self._filled + count] = values[
                    taken : taken + count
                ].detach()
            self._filled += count
            taken += count
            if self._filled == self._rows_per_shard:
                self._write_shard()

    def close(self) -> None:
        """Write the remaining rows as a last, shorter shard, and release the folder."""
        try:
            if self._open and self._filled:
                self._write_shard()
        finally:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._end()

    def _end(self) -> None:
        """Accept no more rows, and release the folder."""
        self._open = False
        self._claim.release()

    def _begin(self) -> None:
        """Write the index of an empty store to a folder that holds nothing else."""
        others = [entry.name for entry in self.path.iterdir() if not entry.name.endswith(PART)]
        if others:
            raise FileExistsError(
                f"{self.path} holds {others[0]} but no {INDEX}: it is not a store; choose another "
                f"path or empty the folder"
            )
        self._write_index(self._index)

    def _resumed(
        self, d: int, dtype: torch.dtype, metadata: dict[str, Any] | None, resume: bool
    ) -> Index:
        """Return the index of the existing store, after checking its d and dtype."""
        refuse_existing(self.path / INDEX, resume)
        index = read_index(self.path)
        if (index.d, index.dtype) != (d, dtype):
            raise ValueError(
                f"{self.path} holds rows of {index.d} {dtype_name(index.dtype)} and cannot be "
                f"continued with d={d}, dtype={dtype_name(dtype)}; choose another path"
            )
        self._remove_unfinished()
        return index if metadata is None else replace(index, metadata=metadata)

    def _remove_unfinished(self) -> None:
        """Remove files that interrupted processes left beside the finished shards."""
        for part in self.path.glob(f"*{PART}"):
            remove_file(part)

    def _check_extras(self, n: int, extras: dict[str, Tensor]) -> None:
        for name, values in extras.items():
            if not isinstance(values, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(values).__name__}")
            if name == ROWS or values.dtype not in STORED_DTYPES.values():
                raise ValueError(
                    f"{name} must not be named {ROWS} and must have a dtype of safetensors, got "
                    f"{dtype_name(values.dtype)}"
                )
            if values.ndim == 0 or len(values) != n:
                raise ValueError(
                    f"{name} must have as many rows as rows, {n}, got {tuple(values.shape)}"
                )
        kept = {
            name: Kept(values.dtype, tuple(values.shape[1:])) for name, values in extras.items()
        }
        if self.rows == 0:
            self._index = replace(self._index, extras=kept)
            self._filling = {}
        elif kept != self._index.extras:
            raise ValueError(
                f"every append must give the same extras, {_described(self._index.extras)}, got "
                f"{_described(kept)}"
            )

    def _room(self, name: str) -> Tensor:
        if name not in self._filling:
            kept = self._index.columns[name]
            self._filling[name] = torch.empty(
                self._rows_per_shard, *kept.tail, dtype=kept.dtype, device="cpu"
            )
        return self._filling[name]

    def _write_shard(self) -> None:
        number = len(self._index.shards)
        try:
            columns = {key: room[: self._filled] for key, room in self._filling.items()}
            shard = write_shard(self.path, number, columns)
            index = replace(self._index, shards=(*self._index.shards, shard))
            self._write_index(index)
        except OSError as error:
            self._end()
            raise OSError(
                error.errno,
                f"{error.strerror} (earlier shards: {number} with {self._index.rows} rows in all, "
                f"are complete; continue with StoreWriter(path, resume=True))",
                error.filename,
            ) from error
        self._index, self._filled = index, 0

    def _write_index(self, index: Index) -> None:
        write_json(self.path / INDEX, index.content)


def write_shard(folder: Path, number: int, columns: Mapping[str, Tensor]) -> Shard:
    """Write a shard, and return its entry of the index.

    Args:
        folder: folder of the store.
        number: number of the shard, from 0.
        columns: rows [n, d] and extras [n, ...] by name.

    Returns:
        Entry of the index.
    """
    name = f"activations-{number:05d}.safetensors"
    size, digest = write_tensors_in_pieces(folder / name, dict(columns))
    return Shard(name, len(columns[ROWS]), size, digest)


def check_not_more(path: Path, rows: int, wanted: int | None) -> None:
    """Raise ValueError if a store that is resumed already holds more rows than are wanted."""
    if wanted is not None and rows > wanted:
        raise ValueError(
            f"{path} holds {rows} rows, more than the {wanted} that are requested, and rows are "
            f"never removed; request at least as many, or choose another path"
        )


def check_range(rows: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError if conversion to float16 would turn a finite value into infinity."""
    if dtype != torch.float16 or rows.dtype == torch.float16:
        return
    lost = rows.isfinite() & rows.to(torch.float16).isinf()
    if bool(lost.any()):
        row, column = (int(i) for i in lost.nonzero()[0])
        raise ValueError(
            f"rows must fit float16, but row {row} holds {float(rows[row, column]):g}; use "
            f"StoreWriter(..., dtype=torch.bfloat16)"
        )


def _described(extras: dict[str, Kept]) -> str:
    return (
        ", ".join(f"{n} {dtype_name(k.dtype)} {['n', *k.tail]}" for n, k in extras.items())
        or "none"
    )
