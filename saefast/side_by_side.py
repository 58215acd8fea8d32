"""Tasks side by side, each on one thread: no sum's order depends on how many threads there are."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch

_ROOM_BYTES = 2 << 30


class Run(Protocol):
    """What calls a function for each of some items and gives the results in their order."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        """`map` is one."""


@contextmanager
def side_by_side(room: int = 0) -> Iterator[Run]:
    """A `map` whose calls share torch's threads among them, one each.

    LAPACK's decompositions and long sums give other last digits on other numbers of threads. On one
    thread they do not, and many of them side by side are as fast.

    Args:
        room: how many bytes a call takes; there are only as many at a time as fit 2 GB.
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
