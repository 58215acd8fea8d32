"""Define the result of matching two dictionaries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.types import brief
from saefast.unit_rows import UnitRows, similarities

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The worth of a one-to-one matching, and the prices that bound every other."""

    value: float
    """sum of the similarities, less the floor each if there is one"""
    upper_bound: float
    """no one-to-one matching has a greater value, of all pairs"""
    certified: bool
    """whether the value is within 1e-10 a feature of the bound, and so the greatest there is"""
    rounds: int
    """how often it was solved and compared with the pairs left out"""
    row_price: Tensor
    """[m] float64; a row's and a column's price sum to at least the similarity of their pair: that
    is the proof. 0 for rows of zeros"""
    column_price: Tensor
    """[m2] float64: the price of being wanted, 0 for those that are free"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The partners of one dictionary's features among those of another."""

    partner: Tensor
    """[m] int64 row of the other dictionary, -1 for none"""
    similarity: Tensor
    """[m] similarity to the partner, 0 where there is none"""
    mutual: Tensor
    """[m] bool: whether each of the pair is the other's nearest"""
    proof: Proof | None = None
    """bound of every one-to-one matching; None unless the matching is one to one"""

    __repr__ = brief

    @property
    def value(self) -> float | None:
        """The value of a one-to-one matching, None for others: see `Proof`."""
        return None if self.proof is None else self.proof.value

    @property
    def upper_bound(self) -> float | None:
        """The bound of a one-to-one matching, None for others: see `Proof`."""
        return None if self.proof is None else self.proof.upper_bound

    @property
    def certified(self) -> bool | None:
        """Whether a one-to-one matching is proven optimal, None for others: see `Proof`."""
        return None if self.proof is None else self.proof.certified

    @property
    def rounds(self) -> int | None:
        """The rounds that a one-to-one matching took, None for others: see `Proof`."""
        return None if self.proof is None else self.proof.rounds

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each feature; one without a partner has nulls there."""
        import pyarrow as pa

        partner = self.partner.cpu().numpy()
        columns = {
            "feature": np.arange(len(partner)),
            "partner": pa.array(partner, mask=partner < 0),
            "similarity": pa.array(self.similarity.cpu().numpy(), mask=partner < 0),
            "mutual": self.mutual.cpu().numpy(),
        }
        if self.proof is not None:
            columns["row_price"] = self.proof.row_price.cpu().numpy()
        return pa.table(columns)


class Pair(NamedTuple):
    """The features alive of two dictionaries, and the nearest of each among the other's."""

    x: UnitRows
    y: UnitRows
    forward: Tensor
    """[len(x)] int64"""
    backward: Tensor
    """[len(y)] int64"""
    absolute: bool
    """whether opposite directions are alike"""

    def turned(self) -> "Pair":
        """Exchange the two dictionaries."""
        return Pair(self.y, self.x, self.backward, self.forward, self.absolute)

    def nearest(self, floor: float | None) -> Matches:
        """Match each feature of x with its nearest, which may be shared, if that is similar."""
        i = torch.arange(len(self.x), device=self.x.device)
        similarity = similarities(self.x, i, self.y, self.forward, self.absolute)
        near = torch.ones_like(self.forward, dtype=torch.bool)
        if floor is not None:
            near = similarity >= floor
        return self.matches(self.forward.where(near, -1), similarity)

    def matches(self, partner: Tensor, similarity: Tensor) -> Matches:
        """Return the matches of all features of x.

        Args:
            partner: [len(x)] int64 among y, -1 for none.
            similarity: [len(x)] to it.
        """
        column, paired = partner.clamp(min=0), partner >= 0
        mutual = (self.forward == column) & paired
        mutual &= self.backward[column] == torch.arange(len(column), device=column.device)
        place = self.y.place[column].where(paired, -1)
        return Matches(
            partner=spread(place, self.x, -1),
            similarity=spread((similarity * paired).to(self.x.dtype), self.x),
            mutual=spread(mutual, self.x),
        )


def spread(values: Tensor, alive: UnitRows, dead: int = 0) -> Tensor:
    """Put values of the features alive at their places among all, and `dead` elsewhere."""
    return values.new_full((alive.size,), dead).index_copy(0, alive.place, values)
