"""Protocol of the ranks of a training: number of this one, and movements of bytes."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Shape = Sequence[int]


class RankFailure(ConnectionError):
    """Error of an exchange because another rank failed.

    Args:
        reason: the reason, as far as it is known.
        first: whether this rank is the first of those that still answer, which tells the user.
    """

    def __init__(self, reason: str, first: bool) -> None:
        super().__init__(reason)
        self.first = first


class Ranks(Protocol):
    """Processes, or threads of one process, that train an SAE together.

    All ranks call the same methods in the same order. The receiver of a tensor knows its shape, and
    its dtype is that of the tensors sent. Tensors are on the CPU.
    """

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Send parts[r] to rank r, and receive a part from each rank.

        Args:
            parts: one tensor of any shape for each rank, of one dtype.
            shapes: shape of the tensor that each rank sends to this one.

        Returns:
            Parts [ranks] that the ranks sent to this one, of the given shapes.
        """
        ...

    def all_gather(self, part: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """Send a part to all ranks, and receive theirs.

        Args:
            part: tensor of any shape.
            shapes: shape of the part of each rank.

        Returns:
            Parts [ranks] of all ranks, of the given shapes.
        """
        ...

    def fail(self, error: BaseException) -> None:
        """Inform the other ranks that this one cannot continue, so that none waits for it.

        Args:
            error: the reason.
        """
        ...


class Alone:
    """The only rank."""

    rank, size = 0, 1

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        return list(parts)

    def all_gather(self, part: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        return [part]

    def fail(self, error: BaseException) -> None:
        """See `Ranks`; there is no other rank to inform."""


ALONE = Alone()
