"""Store of activations: a folder of safetensors shards with an index of checksums."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.columns import Column, FileActivations, Span
from saefast.activations.file_bytes import Sums
from saefast.activations.protocol import DTYPES, dtype_name
from saefast.activations.safetensors_file import DTYPES as STORED_DTYPES
from saefast.activations.safetensors_file import places
from saefast.progress import ProgressBar

INDEX = "index.json"
ROWS = "activations"
"""Name of the activations within a shard."""
VERSION = 1

_BY_NAME = {dtype_name(dtype): dtype for dtype in STORED_DTYPES.values()}


@dataclass(frozen=True)
class Shard:
    """One file of a store."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Kept:
    """Dtype of a stored column, and its shape after the dimension of rows."""

    dtype: torch.dtype
    tail: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Number of bytes of a row."""
        return math.prod(self.tail) * self.dtype.itemsize


@dataclass(frozen=True)
class Index:
    """Content of a store's index: columns, shards and metadata."""

    d: int
    dtype: torch.dtype
    extras: dict[str, Kept] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def columns(self) -> dict[str, Kept]:
        """All columns of a shard, by name."""
        return {ROWS: Kept(self.dtype, (self.d,)), **self.extras}

    @property
    def content(self) -> dict[str, Any]:
        """Content of index.json."""
        return {
            "version": VERSION,
            "d": self.d,
            "dtype": dtype_name(self.dtype),
            "rows": self.rows,
            "extras": {
                name: {"dtype": dtype_name(kept.dtype), "shape": list(kept.tail)}
                for name, kept in self.extras.items()
            },
            "metadata": self.metadata,
            "shards": [asdict(shard) for shard in self.shards],
        }


def read_index(folder: Path) -> Index:
    """Read the index of a store; ValueError names its path if it is invalid."""
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; every store of activations has this file")
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version != VERSION:
            raise ValueError(f"version {version!r} is not {VERSION}, which this saefast reads")
        index = Index(
            d=_positive("d", content["d"]),
            dtype=_BY_NAME[content["dtype"]],
            extras={
                name: Kept(_BY_NAME[kept["dtype"]], tuple(kept["shape"]))
                for name, kept in content["extras"].items()
            },
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            metadata=content["metadata"],
        )
        for shard in index.shards:
            _positive("rows", shard.rows)
            if Path(shard.name).name != shard.name:
                raise ValueError(f"shard {shard.name!r} is in another folder")
        if index.dtype not in DTYPES or index.rows != content["rows"]:
            raise ValueError(f"{content['rows']} rows of {content['dtype']} do not fit its shards")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not the index of a store of activations: {type(error).__name__}: {error}"
        ) from error
    return index


class StoreActivations(FileActivations):
    """Activations of a store, which may be larger than memory.

    Sizes, dtypes and shapes of the shards are always checked.

    Args:
        path: folder of the store.
        target: name of the extra [n, d_out] that a transcoder reconstructs; None: x itself.
        dtype: dtype of the batches; None: as stored, but float32 unless that is a half precision.
        verify: read every file once and compare its checksum.
        verify_reads: compare the bytes that are read with the checksums of their pieces, which
            stores of earlier versions lack.
        block_rows: consecutive rows that are read at once; None: 1 MiB of them.
        window_rows: rows that are shuffled together in memory; None: 256 MiB of them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        target: str | None = None,
        dtype: torch.dtype | None = torch.float32,
        verify: bool = False,
        verify_reads: bool = True,
        block_rows: int | None = None,
        window_rows: int | None = None,
    ):
        folder = Path(path)
        if verify:
            verify_store(folder)
        self.index = read_index(folder)
        if not self.index.shards:
            raise ValueError(
                f"{folder} holds no rows: its writer has not finished a shard yet; wait for it"
            )
        self._by_name = _columns(folder, self.index, verify_reads)
        if target is not None:
            checks.one_of("target", target, tuple(self.index.extras))
            if len(self.index.extras[target].tail) != 1:
                raise ValueError(
                    f"target must name an extra [n, d_out], got {target!r} of shape "
                    f"{['n', *self.index.extras[target].tail]}"
                )
        super().__init__(
            self._by_name[ROWS],
            None if target is None else self._by_name[target],
            dtype=dtype,
            block_rows=block_rows,
            window_rows=window_rows,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the checksums in the index; no shard is read."""
        parts = [f"{self.d} {dtype_name(self.index.dtype)}"]
        parts += [f"{shard.rows} {shard.sha256}" for shard in self.index.shards]
        return f"store:{hashlib.sha256(';'.join(parts).encode()).hexdigest()[:32]}"

    def read(self, name: str, first: int, end: int) -> Tensor:
        """Read rows of a column as they are stored.

        Args:
            name: name of an extra, or "activations".
            first: number of the first row.
            end: number after the last row.

        Returns:
            [end - first, ...], in the dtype of the column.
        """
        checks.one_of("name", name, tuple(self._by_name))
        checks.between("first", first, 0, self.rows, "the rows of the store")
        checks.between("end", end, first, self.rows, "from first to the rows of the store")
        column = self._by_name[name]
        out = column.empty(end - first)
        column.read(first, end, out)
        return out


def verify_store(path: str | Path, *, progress: bool = False) -> None:
    """Read every shard and compare it with its checksum.

    Args:
        path: folder of the store.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: if shards are missing, truncated or changed; the message names all of them.
    """
    folder = Path(path)
    index = read_index(folder)
    damaged = []
    size = sum(shard.bytes for shard in index.shards)
    with ProgressBar("verifying", total=size, unit="bytes", progress=progress) as bar:
        for shard in index.shards:
            try:
                check_shard(folder / shard.name, shard, bar.update)
            except (ValueError, FileNotFoundError) as error:
                damaged.append(str(error))
    if damaged:
        raise ValueError(
            f"damaged shards, which must be written again ({len(damaged)} of {len(index.shards)}): "
            + "; ".join(damaged)
        )


def check_shard(path: Path, shard: Shard, report: Callable[[int], None]) -> None:
    """Compare the file of a shard with the size and the checksum in the index.

    Args:
        path: path of the file.
        shard: entry of the index.
        report: called with numbers of bytes that were read.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is truncated, longer than expected, or differs.
    """
    _check_size(path, shard)
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            report(len(piece))
    if digest.hexdigest() != shard.sha256:
        raise ValueError(f"{path} does not have the checksum in the index")


def _columns(folder: Path, index: Index, verify: bool) -> dict[str, Column]:
    """Return every column of the store, after checking every shard against the index."""
    spans: dict[str, list[Span]] = {name: [] for name in index.columns}
    for shard in index.shards:
        path = folder / shard.name
        _check_size(path, shard)
        found = places(path)
        for name, kept in index.columns.items():
            expected = (kept.dtype, (shard.rows, *kept.tail))
            if name not in found or found[name][:2] != expected:
                got = f"{found[name].dtype} {found[name].shape}" if name in found else "nothing"
                raise ValueError(
                    f"{path}: {name} must be {expected[0]} {expected[1]}, as the index says, got "
                    f"{got}; write the store again"
                )
        sums = Sums.of(path, verify)
        for name, kept in index.columns.items():
            offset, size = found[name].offset, shard.rows * kept.row_bytes
            pieces = None if sums is None else sums.pieces(name, offset, size)
            spans[name].append(Span(path, offset, shard.rows, pieces))
    return {
        name: Column(spans[name], kept.tail, kept.dtype) for name, kept in index.columns.items()
    }


def _check_size(path: Path, shard: Shard) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the index lists it with {shard.rows} rows")
    size = path.stat().st_size
    if size != shard.bytes:
        kind = "truncated" if size < shard.bytes else "longer than expected"
        raise ValueError(f"{path} is {kind}: {size} bytes, but the index says {shard.bytes}")


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value
