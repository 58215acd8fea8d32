"""The same small rows from every kind of source."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saefast.activations import (
    Activations,
    Batch,
    IteratorActivations,
    StoreActivations,
    StoreWriter,
    TensorActivations,
    open_npy,
    open_pt,
    open_safetensors,
)

D = 6
ROWS = 103


def numbered(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return rows where row i has multiples of i, exact in every dtype."""
    return (torch.arange(rows)[:, None] * torch.tensor([1, -1, 0.5, 2, 0, 1])).to(dtype)


def write_store(folder: Path, x: Tensor, rows_per_shard: int = 40, **extras: Tensor) -> Path:
    with StoreWriter(folder, x.shape[1], dtype=x.dtype, rows_per_shard=rows_per_shard) as writer:
        writer.append(x, **extras)
    return folder


def make(kind: str, folder: Path, x: Tensor | None = None) -> Activations:
    """Return the same rows from the source named `kind`."""
    x = numbered() if x is None else x
    if kind == "tensor":
        return TensorActivations(x)
    if kind == "array":
        return TensorActivations(x.numpy())
    if kind == "store":
        return StoreActivations(write_store(folder / "store", x), block_rows=5, window_rows=20)
    if kind == "npy":
        np.save(folder / "x.npy", x.numpy())
        return open_npy(folder / "x.npy")
    if kind == "pt":
        torch.save(x, folder / "x.pt")
        return open_pt(folder / "x.pt")
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"x": x, "tokens": torch.arange(len(x))}, folder / "x.safetensors")
        return open_safetensors(folder / "x.safetensors")
    if kind == "list":
        return IteratorActivations(list(x.split(17)))
    assert kind == "iterator"
    return IteratorActivations(part for _ in range(50) for part in x.split(17))


SOURCES = ["tensor", "array", "store", "npy", "pt", "safetensors", "list", "iterator"]
SHUFFLED = SOURCES[:-2]


def take(batches: Iterator[Batch], n: int) -> list[Batch]:
    return list(islice(batches, n))


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(p.x, q.x) and np.array_equal(p.rows, q.rows) for p, q in pairs)
