"""Ranks that are processes, connected by torch.distributed and started by torchrun."""

import atexit
import contextlib
import importlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from math import prod
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from saefast.train.ranks.group import ALONE, RankFailure, Ranks, Shape

_T = TypeVar("_T")

ENVIRONMENT = "SAEFAST_RANKS_TIMEOUT"
"""Environment variable with the seconds that a rank waits for another one."""
_SECONDS = 120.0
"""Seconds without that variable. It must exceed the longest difference in time at which ranks reach
an exchange, for example because one of them reads or writes a slow disk."""
_GRACE = 3.0
"""Seconds in which ranks find out which ranks still answer, after an exchange has failed."""

_FAILURE = "saefast/failure"
"""Key of the store under which the first rank that fails leaves its reason."""
_PRESENT = "saefast/present"
"""Prefix of the keys of ranks that have noticed a failure."""

_in_use: list[Tensor] = []
"""Tensors of the last exchange. A thread of gloo releases them some time after the exchange; if it
were the last to do so, it would need the interpreter, which aborts the process while it ends."""


def world() -> Ranks:
    """Return the ranks that torchrun started, or the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    return Torch()


class Torch:
    """The processes of the default group of torch.distributed, which is created if necessary.

    The group uses gloo. Tensors are sent as bytes, so that nothing can round them.
    """

    def __init__(self) -> None:
        if not dist.is_initialized():
            _connect(timeout())
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store = dist.distributed_c10d._get_default_store()

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        dtype = parts[0].dtype
        sent = [_bytes_of(part) for part in parts]
        sizes = [prod(shape) * dtype.itemsize for shape in shapes]
        got, given = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu"), torch.cat(sent)
        _in_use[:] = got, given
        try:
            dist.all_to_all_single(got, given, sizes, [len(part) for part in sent])
        except RuntimeError as error:
            raise self._failure() from error
        # Cloned, so that each part is aligned for its dtype.
        pieces = torch.split(got, sizes)
        return [
            piece.clone().view(dtype).view(tuple(shape))
            for piece, shape in zip(pieces, shapes, strict=True)
        ]

    def all_gather(self, part: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        return self.all_to_all([part] * self.size, shapes)

    def fail(self, error: BaseException) -> None:
        """See `Ranks`: the others' next call raises an error with this rank's reason."""
        if not dist.is_initialized():  # the group was left after a failure
            return
        if not isinstance(error, RankFailure):
            reason = str(error) or type(error).__name__
            self._limited(lambda: self._record_failure(f"rank {self.rank} failed: {reason}"))
        dist.destroy_process_group()

    def _record_failure(self, reason: str) -> None:
        """Leave the reason in the store, unless another rank has left one."""
        self._store.set(f"{_PRESENT}/{self.rank}", "")
        self._store.compare_set(_FAILURE, "", reason)

    def _failure(self) -> RankFailure:
        """Return the error of an exchange that failed, with the reason as far as it is known."""
        present: set[int] = {self.rank}
        reason = self._limited(lambda: self._wait_for_others(present)) or ""
        missing = [str(rank) for rank in range(self.size) if rank not in present]
        if not reason and missing and len(present) > 1:
            ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(missing)}"
            reason = f"{ranks} ended or did not answer for {timeout():g} s"
        reason = reason or "another rank ended or does not answer"
        return RankFailure(f"the training stopped, since {reason}", self.rank == min(present))

    def _wait_for_others(self, present: set[int]) -> str:
        """Add the ranks that notice the failure soon to `present`; return the reason if known."""
        self._store.set(f"{_PRESENT}/{self.rank}", "")
        end = time.monotonic() + _GRACE
        while len(present) < self.size and time.monotonic() < end:
            present |= {rank for rank in range(self.size) if self._has(f"{_PRESENT}/{rank}")}
            time.sleep(0.05)
        return self._store.get(_FAILURE).decode() if self._has(_FAILURE) else ""

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _limited(self, call: Callable[[], _T]) -> _T | None:
        """Return the result of a call of the store; None if the store does not answer.

        A store that is in a rank may have ended with it, or be stopped: its calls have no timeout.
        """
        answers: list[_T] = []

        def run() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(call())

        thread = threading.Thread(target=run, name="store", daemon=True)
        thread.start()
        thread.join(2 * _GRACE)
        return answers[0] if answers else None


def timeout() -> float:
    """Return the seconds that a rank waits for another one before it raises an error."""
    given = os.environ.get(ENVIRONMENT, "")
    try:
        seconds = float(given or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{ENVIRONMENT} must be a positive number of seconds, got {given!r}")
    return seconds


def _connect(seconds: float) -> None:
    """Create the default group of the processes that torchrun started."""
    limit = timedelta(seconds=seconds)
    # Functions of this module have the default group as an argument, as of their import. A step
    # imports it, and if a group existed by then, they would keep it and its threads after its end.
    importlib.import_module("torch.distributed.nn.functional")
    # Restarted processes may find the store of the previous attempt, whose addresses belong to
    # processes that have ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
        store = PrefixStore(f"saefast/attempt-{attempt}", store)
        dist.init_process_group("gloo", timeout=limit, store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        raise ConnectionError(
            f"the ranks did not find each other within {seconds:g} s, see {ENVIRONMENT}: {error}"
        ) from error
    # Gloo's threads must have ended before the interpreter does: one that then releases a tensor
    # needs the interpreter, which aborts the process.
    atexit.register(_disconnect)


def _disconnect() -> None:
    """End the default group with its threads, unless a failure has done so."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
