"""Which rank trains which SAEs."""

from typing import NamedTuple

from saefast.train.ranks.group import Ranks
from saefast.train.ranks.share import Share


class Division(NamedTuple):
    """SAEs divided among ranks.

    With at least as many SAEs as ranks, every rank trains some of them on its own, and ranks
    exchange nothing in a step. With fewer, all ranks train every SAE together.
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
