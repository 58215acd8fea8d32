"""Define the result of matching two dictionaries."""

from typing import NamedTuple

from torch import Tensor

from saefast.types import brief


class Matches(NamedTuple):
    """The features of one dictionary among those of another; the last six if one to one."""

    partner: Tensor
    """[m] int64 which row of the other, -1 for none"""
    similarity: Tensor
    """[m] to the partner, 0 where there is none"""
    mutual: Tensor
    """[m] bool whether each of the pair is the other's nearest"""
    value: float | None = None
    """the sum of the similarities, of what they have above the floor if there is one"""
    upper_bound: float | None = None
    """no one-to-one matching has a greater value, of all pairs"""
    certified: bool | None = None
    """whether the value is within 1e-10 a feature of the bound, and so the greatest there is"""
    rounds: int | None = None
    """how often it was solved and compared with the pairs left out"""
    row_price: Tensor | None = None
    """[m] float64; with `column_price` it sums to at least the similarity of any pair. That is the
    proof. 0 for rows of zeros"""
    column_price: Tensor | None = None
    """[m2] float64: the price of being wanted, 0 for those that are free"""

    def __repr__(self) -> str:
        return brief(self)
