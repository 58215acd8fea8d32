"""Linear algebra whose results are bitwise independent of torch's number of threads."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

_ROOM_BYTES = 2 << 30
_TILE = 512


class Run(Protocol):
    """A function like `map`: call a function for each item, yield the results in order."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        """Behave as the built-in `map`."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread inside the context.

    Used for sums whose last bits would depend on the number of threads, and for small tensors, for
    which threads cost more than they save.
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

    The last digits of LAPACK's decompositions and of long sums depend on the number of threads.
    Single-threaded calls do not have this problem, and many of them in parallel are as fast.

    Args:
        room: bytes that one call needs; the number of concurrent calls is limited to 2 GB in total.

    Yields:
        A function like `map` that runs its calls concurrently.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, _ROOM_BYTES // max(room, 1)))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        # The number of threads is set per thread, but new threads inherit the last one set.
        torch.set_num_threads(threads)


def add_products(total: Tensor, block: Tensor, run: Run = map) -> None:
    """Add block^T block to the upper half of `total` [d, d], in tiles that `run` computes.

    Args:
        total: [d, d]; its lower half is left undefined, see `mirrored`.
        block: [rows, d] rows.
        run: function like `map` that processes the tiles.
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
        [rank, d] float64 root; a standard normal row [rank] times the root has this covariance.
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = (vectors[:, kept] * values[kept].sqrt()).T
    return root


def mirrored(upper: Tensor) -> Tensor:
    """Return the symmetric matrix [d, d] with the upper half of `upper`."""
    return upper.triu() + upper.triu(1).T
