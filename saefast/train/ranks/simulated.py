"""Ranks that are threads of one process, for tests and for counting bytes."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from saefast.train.ranks.group import Shape

_T = TypeVar("_T")


class Simulated:
    """A number of ranks, each a thread that `run` starts.

    Args:
        size: number of ranks.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = [0] * size
        """bytes that each rank has received from others"""
        self.calls = [0] * size
        """collectives that each rank has called"""
        self.barrier = _Barrier(size)
        self.sent: list[Sequence[Tensor]] = [()] * size

    def run(self, work: Callable[["SimulatedRank"], _T]) -> list[_T]:
        """Call a function on every rank at once.

        Args:
            work: function of a rank.

        Returns:
            Results of the ranks, in their order.

        Raises:
            BaseException: the first error of a rank; the others are stopped.
        """
        self.barrier.reset()
        results: dict[int, _T] = {}
        errors: list[BaseException] = []

        def working(rank: int) -> None:
            here = SimulatedRank(self, rank)
            try:
                results[rank] = work(here)
            except threading.BrokenBarrierError:
                pass  # another rank failed, and its error is raised
            except BaseException as error:
                errors.append(error)
                here.fail(error)

        threads = [threading.Thread(target=working, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[rank] for rank in range(self.size)]


class _Barrier:
    """A barrier that a thread passes once all have reached it, even if it is aborted just then.

    Threads of `threading.Barrier` that were released but have not run yet fail with an abort, as if
    their exchange had not taken place.
    """

    def __init__(self, size: int) -> None:
        self._size, self._waiting, self._passed, self._aborted = size, 0, 0, False
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Return once all threads wait; raise a BrokenBarrierError after an abort."""
        with self._changed:
            here = self._passed
            self._waiting += 1
            if self._waiting == self._size and not self._aborted:
                self._waiting, self._passed = 0, here + 1
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._passed > here or self._aborted)
            if self._passed == here:
                raise threading.BrokenBarrierError

    def abort(self) -> None:
        """Stop threads that wait for others, and all that come later."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def reset(self) -> None:
        """Undo an abort; no thread may be waiting."""
        with self._changed:
            self._waiting, self._aborted = 0, False


class SimulatedRank:
    """One rank of a simulation; see `Ranks`."""

    def __init__(self, group: Simulated, rank: int) -> None:
        self._group, self.rank, self.size = group, rank, group.size

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        group = self._group
        group.sent[self.rank] = [part.detach() for part in parts]
        group.barrier.wait()
        # A sender may overwrite its tensors as soon as all have passed the second barrier.
        got = [sent[self.rank].clone(memory_format=torch.contiguous_format) for sent in group.sent]
        group.barrier.wait()
        for shape, tensor in zip(shapes, got, strict=True):
            if tuple(shape) != tuple(tensor.shape):
                raise ValueError(f"a rank sent {tuple(tensor.shape)}, expected {tuple(shape)}")
        group.calls[self.rank] += 1
        group.received[self.rank] += sum(
            tensor.nbytes for sender, tensor in enumerate(got) if sender != self.rank
        )
        return got

    def all_gather(self, part: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        return self.all_to_all([part] * self.size, shapes)

    def fail(self, error: BaseException) -> None:
        """See `Ranks`."""
        self._group.barrier.abort()
