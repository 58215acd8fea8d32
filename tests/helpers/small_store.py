"""A store of a few numbered rows, and the paths of its files."""

from pathlib import Path

import torch
from torch import Tensor

from saefast.activations import StoreActivations, StoreWriter

D = 4


def numbered(first: int, end: int) -> Tensor:
    """Return rows where row i has the value i."""
    return torch.arange(first, end, dtype=torch.float32)[:, None].expand(-1, D)


def write(folder: Path, rows: int = 25, rows_per_shard: int = 10, **more: object) -> Path:
    with StoreWriter(
        folder, D, dtype=torch.float32, rows_per_shard=rows_per_shard, **more
    ) as writer:
        writer.append(numbered(0, rows))
    return folder


def contents(folder: Path) -> Tensor:
    source = StoreActivations(folder)
    return source.read("activations", 0, source.rows)


def shard(folder: Path, number: int) -> Path:
    return folder / f"activations-{number:05d}.safetensors"
