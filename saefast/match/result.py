"""Results of matching two dictionaries."""

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
    """Value of a one-to-one matching, and prices that bound the value of every other matching."""

    value: float
    """sum of the similarities of the pairs, each minus the floor if there is one"""
    upper_bound: float
    """bound on the value of every one-to-one matching of the two dictionaries"""
    certified: bool
    """whether the value is within 1e-10 per feature of the bound, so that no matching is better"""
    rounds: int
    """number of times that the matching was solved and compared with all other pairs"""
    row_price: Tensor
    """[m] float64, prices of the features of the first dictionary. The prices of a row and a column
    sum to at least the similarity of the pair, which proves the bound. 0 for dead features"""
    column_price: Tensor
    """[m2] float64, prices of the features of the second dictionary; 0 for dead features and, in a
    certified matching, for features without a partner"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Partners of the features of one dictionary among those of another."""

    partner: Tensor
    """[m] int64, index of the partner in the other dictionary; -1 for none"""
    similarity: Tensor
    """[m] similarity to the partner; 0 without a partner"""
    mutual: Tensor
    """[m] bool, whether the feature and its partner are each the nearest feature of the other"""
    proof: Proof | None = None
    """value and bound of a one-to-one matching; None for nearest features"""

    __repr__ = brief

    @property
    def value(self) -> float | None:
        """Value of a one-to-one matching, else None; see `Proof`."""
        return None if self.proof is None else self.proof.value

    @property
    def upper_bound(self) -> float | None:
        """Upper bound of a one-to-one matching, else None; see `Proof`."""
        return None if self.proof is None else self.proof.upper_bound

    @property
    def certified(self) -> bool | None:
        """Whether a one-to-one matching is proven optimal, else None; see `Proof`."""
        return None if self.proof is None else self.proof.certified

    @property
    def rounds(self) -> int | None:
        """Number of rounds of a one-to-one matching, else None; see `Proof`."""
        return None if self.proof is None else self.proof.rounds

    def to_table(self) -> "pa.Table":
        """Return a pyarrow table with a row for each feature, and nulls for missing partners."""
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
    """Alive features of two dictionaries, and the nearest feature of each in the other."""

    x: UnitRows
    """alive features of the first dictionary"""
    y: UnitRows
    """alive features of the second dictionary"""
    forward: Tensor
    """[len(x)] int64, nearest of y for each of x"""
    backward: Tensor
    """[len(y)] int64, nearest of x for each of y"""
    absolute: bool
    """whether opposite directions count as similar"""

    def turned(self) -> "Pair":
        """Exchange the two dictionaries."""
        return Pair(self.y, self.x, self.backward, self.forward, self.absolute)

    def nearest(self, floor: float | None) -> Matches:
        """Match each feature of x with its nearest of y, if their similarity reaches `floor`."""
        i = torch.arange(len(self.x), device=self.x.device)
        similarity = similarities(self.x, i, self.y, self.forward, self.absolute)
        near = torch.ones_like(self.forward, dtype=torch.bool)
        if floor is not None:
            near = similarity >= floor
        return self.matches(self.forward.where(near, -1), similarity)

    def matches(self, partner: Tensor, similarity: Tensor) -> Matches:
        """Return the matches of all features of the first dictionary, alive and dead.

        Args:
            partner: [len(x)] int64, index in y of the partner; -1 for none.
            similarity: [len(x)] similarity to the partner.

        Returns:
            The matches, without a proof.
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
    """Scatter values of the alive features to their positions among all, with `dead` elsewhere."""
    return values.new_full((alive.size,), dead).index_copy(0, alive.place, values)
