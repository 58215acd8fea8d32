"""Features at length 1 in float64, made block by block from wherever they lie."""

import math

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import SIDES, Features, as_dictionary, side_of
from saefast.ops.gather_dots import gather_dots

_GATHERED_BYTES = 2**26  # of rows that are gathered at a time


class Directions:
    """The features of a dictionary that are alive, in the order they have there.

    Nothing but the block that is asked for is in float64: dictionaries may be mapped from disk and
    larger than memory. Products of such rows are cosines to the last digits.
    """

    def __init__(self, sides: list[Tensor], place: Tensor) -> None:
        self._sides = sides
        self.place = place
        """where they stand among all, [len] int64"""

    @classmethod
    def of(cls, features: Features, side: str, name: str) -> "Directions":
        """Those of one side, or of both side by side: then cosines are the mean of both."""
        checks.one_of("side", side, SIDES)
        dictionary = as_dictionary(features, name)
        names = ("decoder", "encoder") if side == "both" else (side,)
        sides = [side_of(dictionary, each, name) for each in names]
        return cls(sides, dictionary.alive.nonzero()[:, 0])

    def __len__(self) -> int:
        return len(self.place)

    @property
    def size(self) -> int:
        """How many features the dictionary has, dead ones too."""
        return len(self._sides[0])

    @property
    def width(self) -> int:
        """Of a row."""
        return sum(side.shape[1] for side in self._sides)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self._sides[0].device

    @property
    def dtype(self) -> torch.dtype:
        """That of similarities between them: what they are stored in, at least float32."""
        return torch.promote_types(self._sides[0].dtype, torch.float32)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, [stop - start, width] float64."""
        return self.take(torch.arange(start, min(stop, len(self)), device=self.device))

    def take(self, rows: Tensor) -> Tensor:
        """Those of these numbers."""
        place = self.place[rows]
        units = [_unit(side, place) for side in self._sides]
        return units[0] if len(units) == 1 else torch.cat(units, 1) / math.sqrt(len(units))

    def subset(self, rows: Tensor) -> "Directions":
        """Only those of these numbers, as if there were no others."""
        return Directions(self._sides, self.place[rows])


def _unit(side: Tensor, place: Tensor) -> Tensor:
    if len(place) and int(place[-1]) - int(place[0]) == len(place) - 1 and _ascends(place):
        rows = side[int(place[0]) : int(place[-1]) + 1].double()  # read in one piece
    else:
        rows = side[place].double()
    return normalised(rows)


def normalised(rows: Tensor) -> Tensor:
    """Rows at length 1."""
    # Squares of what is divided by the largest neither overflow nor vanish.
    rows = rows / torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit


def _ascends(place: Tensor) -> bool:
    return bool((place.diff() == 1).all())


def similarities(x: Directions, i: Tensor, y: Directions, j: Tensor, absolute: bool) -> Tensor:
    """Of feature i[c] of `x` with feature j[c] of `y`, [pairs] float64."""
    step = max(1, _GATHERED_BYTES // (8 * x.width))
    pieces = [
        _row_dots(x.take(i[c : c + step]), y.take(j[c : c + step])) for c in range(0, len(i), step)
    ]
    dots = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64, device=x.device)
    return dots.abs() if absolute else dots


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    dots: Tensor = gather_dots(a, b, torch.arange(len(a), device=a.device)[:, None])
    return dots[:, 0]
