"""One reading of the activations for all ranks: one of them reads and sends all batches."""

import contextlib
from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.activations import Batch, Prefetcher
from saefast.train.ranks.group import Ranks
from saefast.train.ranks.words import bytes_sent_by

READER = 0
"""Rank that reads the activations."""


class Reading(NamedTuple):
    """Stream of batches on a rank."""

    batches: Iterator[Batch]
    """batches, the same on all ranks"""
    ahead: int
    """number of batches that a thread may take ahead of the training; 0: batches are exchanged, so
    they must be taken in the thread of the training"""


@contextlib.contextmanager
def read_once(ranks: Ranks, batches: Iterator[Batch], ahead: int) -> Iterator[Reading]:
    """Read a stream on one rank for all, and close it when the context is left.

    Args:
        ranks: ranks that train on the stream.
        batches: the stream; only the reader iterates over it. A generator is closed, so that its
            threads end.
        ahead: number of batches to read ahead of the training.

    Yields:
        The stream of this rank.
    """
    try:
        if ranks.size == 1:
            yield Reading(batches, ahead)
        elif ranks.rank == READER:
            with Prefetcher[Batch](batches, ahead) as read:
                yield Reading(_sent(ranks, read), 0)
        else:
            yield Reading(_received(ranks), 0)
    finally:
        if isinstance(batches, Generator):
            # A thread that waits for a row may still execute it.
            with contextlib.suppress(ValueError):
                batches.close()


def batch_bytes(size: int, widths: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes of a batch that a rank receives, without its header of a few hundred bytes.

    Args:
        size: number of rows.
        widths: width of the rows, and of their targets if there are any.
        itemsize: bytes of a number, in the dtype in which the activations are stored.
    """
    return size * (sum(widths) * itemsize + torch.int64.itemsize)


def _sent(ranks: Ranks, batches: Iterator[Batch]) -> Iterator[Batch]:
    from safetensors.torch import save

    for batch in batches:
        bytes_sent_by(ranks, READER, save(_tensors(batch)))
        yield batch


def _received(ranks: Ranks) -> Iterator[Batch]:
    from safetensors.torch import load

    while True:
        tensors = load(bytes_sent_by(ranks, READER, b""))
        where = bytes(tensors["where"].tolist()).decode()
        yield Batch(tensors["x"], tensors.get("target"), where, tensors["rows"].numpy())


def _tensors(batch: Batch) -> dict[str, Tensor]:
    tensors = {
        "x": batch.x.cpu().contiguous(),
        "rows": torch.from_numpy(batch.rows),
        "where": torch.frombuffer(bytearray(batch.where.encode()), dtype=torch.uint8),
    }
    if batch.target is not None:
        tensors["target"] = batch.target.cpu().contiguous()
    return tensors
