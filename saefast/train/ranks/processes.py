"""Ranks that are processes, connected by torch.distributed and started by torchrun."""

import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from saefast.train.ranks.group import ALONE, Ranks, Shape

_TIMEOUT = timedelta(seconds=120)
"""Time after which a rank that waits for another one raises an error."""

_FAILURE = "saefast/failure"
"""Key of the store under which the first rank that fails leaves its reason."""

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
            # Restarted processes may find the store of the previous attempt, whose addresses belong
            # to processes that have ended.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
            store = PrefixStore(f"saefast/attempt-{attempt}", store)
            dist.init_process_group(
                "gloo", timeout=_TIMEOUT, store=store, rank=rank, world_size=size
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store = dist.distributed_c10d._get_default_store()

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        dtype = parts[0].dtype
        sent = [_bytes_of(part) for part in parts]
        sizes = [prod(shape) * dtype.itemsize for shape in shapes]
        got, given = torch.empty(sum(sizes), dtype=torch.uint8), torch.cat(sent)
        _in_use[:] = got, given
        try:
            dist.all_to_all_single(got, given, sizes, [len(part) for part in sent])
        except RuntimeError as error:
            raise ConnectionError(self._reason()) from error
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
        if not dist.is_initialized():  # it has been told
            return
        with contextlib.suppress(RuntimeError):  # the store went with its process
            self._store.compare_set(_FAILURE, "", f"rank {self.rank} failed: {error}")
        dist.destroy_process_group()

    def _reason(self) -> str:
        """Return why another rank does not answer, as far as it is known."""
        with contextlib.suppress(RuntimeError):
            if self._store.check([_FAILURE]):
                return f"the training stopped, since {self._store.get(_FAILURE).decode()}"
        return "the training stopped, since another rank was killed or does not answer"


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
