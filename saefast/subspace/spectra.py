"""How the energy of many directions is spread over the space: their Gram matrix, decomposed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.linalg import Run, add_products, mirrored

METHODS = ("gram", "svd")

_SLICE_ROWS = 256
_BLOCK_BYTES = 64 << 20
_EPSILON = torch.finfo(torch.float64).eps


class Directions(NamedTuple):
    """Unit vectors, made when they are needed: only a block of them is ever in memory."""

    size: int
    d: int
    take: Callable[[int, int], Tensor]
    """those from one number to before another, [*, d] float64: up to 256, from a multiple of it"""

    @classmethod
    def of_rows(cls, rows: Tensor, index: Tensor) -> "Directions":
        """Some rows of a matrix, at length 1; none may be zero."""
        return cls(len(index), rows.shape[1], lambda first, end: unit(rows[index[first:end]]))

    def blocks(self, run: Run = map) -> Iterator[Tensor]:
        """All of them, [*, d] float64 at a time, in memory that is used again."""
        slices = max(1, _BLOCK_BYTES // (8 * self.d * _SLICE_ROWS))
        size = slices * _SLICE_ROWS
        block = torch.empty(min(size, self.size), self.d, dtype=torch.float64)
        for start in range(0, self.size, size):
            end = min(start + size, self.size)

            def fill(first: int, start: int = start, end: int = end) -> None:
                last = min(first + _SLICE_ROWS, end)
                block[first - start : last - start] = self.take(first, last)

            for _ in run(fill, range(start, end, _SLICE_ROWS)):
                pass
            yield block[: end - start]


class Decomposition(NamedTuple):
    """The principal directions of some unit vectors, strongest first.

    Within a cluster of equal eigenvalues the vectors are arbitrary, and so are all their signs:
    only the planes they span mean anything.
    """

    size: int
    """of how many unit vectors"""
    eigenvalues: Tensor
    """[d] of the Gram matrix: squared singular values; 0 beyond the rank"""
    vectors: Tensor
    """[d, rank]"""

    @property
    def rank(self) -> int:
        """How many directions are above rounding."""
        return self.vectors.shape[1]

    @property
    def shares(self) -> Tensor:
        """[d] of the energy; they sum to 1."""
        return self.eigenvalues / self.eigenvalues.sum().clamp(min=_EPSILON)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the shares of energy (Roy and Vetterli, of squares)."""
        shares = self.shares[: self.rank]
        return math.exp(-float(torch.xlogy(shares, shares).sum())) if self.rank else 0.0

    @property
    def participation_ratio(self) -> float:
        """1 / the sum of the squared shares of energy."""
        return 1 / float(self.shares.square().sum()) if self.rank else 0.0

    def energy_rank(self, energy: float) -> int:
        """The fewest principal directions that hold this share of the energy."""
        # Ten equal eigenvalues reach .9 with nine of them, whatever the last digit says.
        reached = self.shares[: self.rank].cumsum(0) >= energy * (1 - 1e-9)
        return int(reached.int().argmax()) + 1 if self.rank else 0

    def ranks(self, energy: float) -> dict[str, float]:
        """All of them, by name."""
        return {
            "effective_rank": self.effective_rank,
            "participation_ratio": self.participation_ratio,
            "energy_rank": self.energy_rank(energy),
        }


def unit(rows: Tensor) -> Tensor:
    """Rows at length 1 in float64, on the CPU."""
    rows = rows.to("cpu", torch.float64)
    # Squares of what is divided by the largest neither overflow nor vanish.
    rows = rows / rows.abs().amax(1, keepdim=True)
    length: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length


def gram(directions: Directions, run: Run = map) -> Tensor:
    """[d, d] float64: the sum over all of v v^T."""
    total = torch.zeros(directions.d, directions.d, dtype=torch.float64)
    for block in directions.blocks(run):
        add_products(total, block, run)
    return mirrored(total)


def decompose(
    several: Sequence[Directions], method: str = "gram", run: Run = map
) -> list[Decomposition]:
    """The principal directions of several sets of unit vectors.

    "gram" takes the eigenvectors of the Gram matrix, and blurs singular values below about 1e-7 of
    the largest, which count as zero. "svd" resolves down to 1e-12 and takes several times as long:
    the QR decomposition of block after block, then the SVD of what is left. It also serves sets
    much smaller than d, for which it is the faster of the two.
    """
    grams = [None if _prefers_svd(each, method) else gram(each, run) for each in several]
    return list(run(_decompose, zip(several, grams, strict=True)))


def _prefers_svd(directions: Directions, method: str) -> bool:
    return method == "svd" or directions.size <= directions.d // 4


def _decompose(source: tuple[Directions, Tensor | None]) -> Decomposition:
    directions, matrix = source
    if matrix is None:
        triangle = torch.zeros(0, directions.d, dtype=torch.float64)
        for block in directions.blocks():
            triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
        singular, vectors = torch.linalg.svd(triangle, full_matrices=False)[1:]
        values, vectors = singular.square(), vectors.T
        floor = (_EPSILON * max(directions.size, directions.d)) ** 2
    else:
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
        floor = _EPSILON * max(directions.d, 64)
    rank = int((values > floor * values[:1]).sum())
    eigenvalues = torch.zeros(directions.d, dtype=torch.float64)
    eigenvalues[:rank] = values[:rank]
    return Decomposition(directions.size, eigenvalues, vectors[:, :rank].contiguous())
