"""Computations whose bits do not depend on how many threads torch uses."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

_ROOM_BYTES = 2 << 30
_TILE = 512


class Run(Protocol):
    """Calls a function for each of several items and yields the results in the items' order."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        """Behave as the built-in `map`."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside the context.

    For sums whose last bits would depend on the number of threads, and for small tensors, where
    threads cost more than they save.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def side_by_side(room: int = 0) -> Iterator[Run]:
    """Provide a `map` that runs its calls concurrently, each on one thread.

    LAPACK's decompositions and long sums give other last digits on other numbers of threads. On one
    thread they do not, and many of them side by side are as fast.

    Args:
        room: bytes that a call takes; only as many calls run at a time as fit 2 GB.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, _ROOM_BYTES // max(room, 1)))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        # A thread's number is its own, but threads that start later take the last one given.
        torch.set_num_threads(threads)


def add_products(total: Tensor, block: Tensor, run: Run = map) -> None:
    """Add block^T block to the upper half of `total` [d, d], in tiles that `run` computes.

    Args:
        total: [d, d]; its lower half is left undefined, see `mirrored`.
        block: [rows, d].
        run: calls a function for each tile.
    """
    starts = range(0, len(total), _TILE)

    def add(tile: tuple[int, int]) -> None:
        i, j = (slice(start, start + _TILE) for start in tile)
        total[i, j].addmm_(block[:, i].T, block[:, j])

    for _ in run(add, [(i, j) for i in starts for j in starts if i <= j]):
        pass


def covariance_root(covariance: Tensor) -> Tensor:
    """Factor a covariance as root^T root.

    Args:
        covariance: [d, d] float64, symmetric.

    Returns:
        [rank, d] float64: independent standard normal rows [rank] times it have this covariance.
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = (vectors[:, kept] * values[kept].sqrt()).T
    return root


def mirrored(upper: Tensor) -> Tensor:
    """Return the symmetric matrix [d, d] whose upper half is that of `upper`."""
    return upper.triu() + upper.triu(1).T
