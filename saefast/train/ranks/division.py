"""Which rank trains, reports and returns which SAEs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.train.ranks.group import Ranks
from saefast.train.ranks.share import Share
from saefast.train.ranks.words import said, sent_by


def check_device(ranks: Ranks, device: torch.device) -> None:
    """Raise a ValueError unless ranks can train on a device."""
    if ranks.size > 1 and device.type != "cpu":
        raise ValueError("several ranks train on CPUs; pass device='cpu', or start one process")


def returns_files(ranks: Ranks) -> bool:
    """Return whether ranks return the files of SAEs, which no rank then needs to hold."""
    return ranks.size > 1


class Division(NamedTuple):
    """SAEs divided among ranks.

    With at least as many SAEs as ranks, every rank trains some of them on its own, and ranks
    exchange only rows and signals in a step. With fewer, all ranks train every SAE together.
    """

    ranks: Ranks
    saes: int
    """number of SAEs"""

    @property
    def together(self) -> bool:
        """Whether several ranks train each SAE."""
        return self.ranks.size > self.saes

    def owner(self, number: int) -> int:
        """Return the rank that trains an SAE on its own and writes its files."""
        return 0 if self.together else number % self.ranks.size

    def trains(self, number: int) -> bool:
        """Return whether this rank takes part in the training of an SAE."""
        return self.together or self.owner(number) == self.ranks.rank

    def share_of(self, latents: int, width: int) -> Share | None:
        """Return this rank's share of an SAE that it trains; None: the rank trains it alone."""
        return Share(self.ranks, latents, width) if self.together else None

    def of_all(self, own: Sequence[Any], numbers: Sequence[int]) -> list[Any]:
        """Return values of some SAEs on all ranks.

        Args:
            own: values of those SAEs that this rank trains, which JSON can hold.
            numbers: numbers of all SAEs.
        """
        if self.together:
            return list(own)
        each = [iter(values) for values in said(self.ranks, list(own))]
        return [next(each[self.owner(number)]) for number in numbers]

    def copy_to_all(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Copy tensors of an SAE from the rank that trains it to all ranks."""
        if self.together or self.ranks.size == 1:
            return  # all ranks have them
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(sent_by(self.ranks, self.owner(number), tensor))
