"""Principal directions of sets of unit vectors, and the distribution of their energy."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from saefast.linalg import Run, add_products, mirrored

METHODS = ("gram", "svd")

_SLICE_ROWS = 256
_BLOCK_BYTES = 64 << 20
_EPSILON = torch.finfo(torch.float64).eps


class UnitVectors(Protocol):
    """Vectors of length 1 that are computed on demand, such as `UnitRows`."""

    def __len__(self) -> int:
        """Return the number of vectors."""

    @property
    def width(self) -> int:
        """Dimension of the space."""

    def block(self, start: int, stop: int) -> Tensor:
        """Return vectors `start` to `stop`, [*, width] float64; `start` is a multiple of 256."""


class Decomposition(NamedTuple):
    """Principal directions of a set of unit vectors, in descending order of their energy.

    Signs are arbitrary, and so are the vectors of equal eigenvalues: only the subspaces that they
    span are meaningful.
    """

    size: int
    """number of unit vectors"""
    eigenvalues: Tensor
    """[d] float64, eigenvalues of the Gram matrix, the squared singular values; 0 beyond the
    rank"""
    vectors: Tensor
    """[d, rank] float64, orthonormal columns"""

    @property
    def rank(self) -> int:
        """Number of directions whose energy is above rounding."""
        return self.vectors.shape[1]

    @property
    def shares(self) -> Tensor:
        """[d] float64, share of the energy in each direction; the sum is 1."""
        return self.eigenvalues / self.eigenvalues.sum().clamp(min=_EPSILON)

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the energy shares (Roy and Vetterli, of squares)."""
        shares = self.shares[: self.rank]
        return math.exp(-float(torch.xlogy(shares, shares).sum())) if self.rank else 0.0

    @property
    def participation_ratio(self) -> float:
        """1 / the sum of the squared energy shares."""
        return 1 / float(self.shares.square().sum()) if self.rank else 0.0

    def energy_rank(self, energy: float) -> int:
        """Return the smallest number of principal directions that hold this share of the energy."""
        # Nine of ten equal eigenvalues must reach 0.9 despite rounding.
        reached = self.shares[: self.rank].cumsum(0) >= energy * (1 - 1e-9)
        return int(reached.int().argmax()) + 1 if self.rank else 0

    def ranks(self, energy: float) -> dict[str, float]:
        """Return the effective rank, participation ratio and energy rank by name."""
        return {
            "effective_rank": self.effective_rank,
            "participation_ratio": self.participation_ratio,
            "energy_rank": self.energy_rank(energy),
        }


def gram(vectors: UnitVectors, run: Run = map) -> Tensor:
    """Compute the sum of v v^T over all vectors v, [d, d] float64."""
    total = torch.zeros(vectors.width, vectors.width, dtype=torch.float64)
    for block in _blocks(vectors, run):
        add_products(total, block, run)
    return mirrored(total)


def _blocks(vectors: UnitVectors, run: Run = map) -> Iterator[Tensor]:
    """Yield all vectors in blocks [*, d] float64, which share one buffer."""
    count, d = len(vectors), vectors.width
    size = _SLICE_ROWS * max(1, _BLOCK_BYTES // (8 * d * _SLICE_ROWS))
    block = torch.empty(min(size, count), d, dtype=torch.float64)
    for start in range(0, count, size):
        end = min(start + size, count)

        def fill(first: int, start: int = start, end: int = end) -> None:
            last = min(first + _SLICE_ROWS, end)
            block[first - start : last - start] = vectors.block(first, last)

        for _ in run(fill, range(start, end, _SLICE_ROWS)):
            pass
        yield block[: end - start]


def decompose(
    several: Sequence[UnitVectors], method: str = "gram", run: Run = map
) -> list[Decomposition]:
    """Compute the principal directions of several sets of unit vectors.

    "gram" uses the eigenvectors of the Gram matrix. Singular values below about 1e-7 of the largest
    are lost to rounding and count as zero. "svd" resolves values down to 1e-12 and takes several
    times as long: it accumulates a QR decomposition block by block and computes the SVD of its
    triangle. Sets of at most d / 4 vectors always use "svd", which is faster for them.

    Returns:
        Principal directions and singular values of each set.
    """
    grams = [None if _prefers_svd(each, method) else gram(each, run) for each in several]
    return list(run(_decompose, zip(several, grams, strict=True)))


def _prefers_svd(vectors: UnitVectors, method: str) -> bool:
    return method == "svd" or len(vectors) <= vectors.width // 4


def _decompose(source: tuple[UnitVectors, Tensor | None]) -> Decomposition:
    several, matrix = source
    count, d = len(several), several.width
    if matrix is None:
        triangle = torch.zeros(0, d, dtype=torch.float64)
        for block in _blocks(several):
            triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
        singular, vectors = torch.linalg.svd(triangle, full_matrices=False)[1:]
        values, vectors = singular.square(), vectors.T
        floor = (_EPSILON * max(count, d)) ** 2
    else:
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
        floor = _EPSILON * max(d, 64)
    rank = int((values > floor * values[:1]).sum())
    eigenvalues = torch.zeros(d, dtype=torch.float64)
    eigenvalues[:rank] = values[:rank]
    return Decomposition(count, eigenvalues, vectors[:, :rank].contiguous())
