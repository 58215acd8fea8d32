"""Normalise features to length 1 in float64, block by block."""

import math

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import SIDES, Features, as_dictionary, side_of
from saefast.ops.gather_dots import gather_dots

_GATHERED_BYTES = 2**26  # bytes of rows that are gathered at a time


class UnitRows:
    """Selected rows of a matrix, or of several matrices concatenated, scaled to length 1.

    Only the requested block is converted to float64, so that dictionaries may be mapped from disk
    and larger than memory. Dot products of the rows are cosines, accurate to the last digits.

    Args:
        sides: one or more matrices [size, *].
        place: [len] int64, the selected rows; none of them may be zero.
        device: device on which blocks are computed; None: the device of the matrices.
    """

    def __init__(
        self, sides: list[Tensor], place: Tensor, device: torch.device | None = None
    ) -> None:
        self._sides = sides
        self.place = place
        """[len] int64, indices of the selected rows in the matrices"""
        self.device = device or sides[0].device
        """device on which blocks are computed"""

    @classmethod
    def of(cls, features: Features, side: str, name: str) -> "UnitRows":
        """Select the alive features of a dictionary, in their order.

        Args:
            features: a tensor [m, d], an SAE or a `Dictionary`.
            side: "decoder", "encoder", or "both", for which cosines are the mean of both sides.
            name: name of the argument in error messages.

        Returns:
            Unit vectors of the alive features.
        """
        checks.one_of("side", side, SIDES)
        dictionary = as_dictionary(features, name)
        names = ("decoder", "encoder") if side == "both" else (side,)
        sides = [side_of(dictionary, each, name) for each in names]
        return cls(sides, dictionary.alive.nonzero()[:, 0])

    @classmethod
    def of_rows(cls, rows: Tensor, place: Tensor) -> "UnitRows":
        """Select the rows `place` [len] of a matrix [m, d] on any device; blocks are on the CPU."""
        return cls([rows], place, torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.place)

    @property
    def size(self) -> int:
        """Number of rows of the matrices, including those that are not selected."""
        return len(self._sides[0])

    @property
    def width(self) -> int:
        """Number of columns of all matrices together."""
        return sum(side.shape[1] for side in self._sides)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of similarities between rows: the dtype of the matrices, but at least float32."""
        return torch.promote_types(self._sides[0].dtype, torch.float32)

    def block(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`, [stop - start, width] float64."""
        return self._at(self.place[start:stop])

    def take(self, rows: Tensor) -> Tensor:
        """Return selected rows by position, [*, width] float64."""
        return self._at(self.place[rows])

    def subset(self, rows: Tensor) -> "UnitRows":
        """Select some of the rows by position."""
        return UnitRows(self._sides, self.place[rows], self.device)

    def _at(self, place: Tensor) -> Tensor:
        units = [normalised(_read(side, place).to(self.device)) for side in self._sides]
        return units[0] if len(units) == 1 else torch.cat(units, 1) / math.sqrt(len(units))


def _read(side: Tensor, place: Tensor) -> Tensor:
    if len(place) and int(place[-1]) - int(place[0]) == len(place) - 1 and _ascends(place):
        return side[int(place[0]) : int(place[-1]) + 1]  # read in one piece
    return side[place]


def normalised(rows: Tensor) -> Tensor:
    """Scale rows [*, d] to length 1, in float64."""
    rows = rows.double()
    # Divide by the largest entry first, so that squares neither overflow nor underflow.
    rows = rows / torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit


def _ascends(place: Tensor) -> bool:
    return bool((place.diff() == 1).all())


def similarities(x: UnitRows, i: Tensor, y: UnitRows, j: Tensor, absolute: bool) -> Tensor:
    """Compute the cosines of feature i[c] of `x` with feature j[c] of `y`, [pairs] float64.

    With `absolute`, return their absolute values.

    Returns:
        [pairs] float64, cosines.
    """
    step = max(1, _GATHERED_BYTES // (8 * x.width))
    pieces = [
        _row_dots(x.take(i[c : c + step]), y.take(j[c : c + step])) for c in range(0, len(i), step)
    ]
    dots = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64, device=x.device)
    return dots.abs() if absolute else dots


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    dots: Tensor = gather_dots(a, b, torch.arange(len(a), device=a.device)[:, None])
    return dots[:, 0]
