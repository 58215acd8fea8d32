"""Principal angles and overlaps of two subspaces, and their moments by chance."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.linalg import side_by_side
from saefast.subspace.spectra import Decomposition, decompose
from saefast.unit_rows import UnitRows


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Compute the principal angles between the spans of the rows of two matrices.

    Args:
        a: [m, d]; rows may have any length, and may be linearly dependent or zero.
        b: [m2, d]; of the same kind.

    Returns:
        [r] float64 angles in radians, ascending, where r is the dimension of the smaller span.
        Angles near 0 and near a right angle are accurate to about 1e-15 if the rows determine
        their span to that accuracy.
    """
    checks.floating("a", a, "[m, d]")
    checks.floating("b", b, "[m2, d]")
    checks.size("b", b, 1, a.shape[1], "the columns of a")
    for name, rows in (("a", a), ("b", b)):
        checks.finite(name, rows)
    spans = [UnitRows.of_rows(rows.detach(), rows.any(1).nonzero()[:, 0]) for rows in (a, b)]
    with side_by_side() as run:
        bases = [each.vectors for each in decompose(spans, "svd", run)]
        angles: Tensor = next(run(lambda both: angles_between(*both), [bases]))
    return angles


def angles_between(a: Tensor, b: Tensor) -> Tensor:
    """Compute the principal angles between two orthonormal bases [d, r], in ascending order."""
    if a.shape[1] > b.shape[1]:
        a, b = b, a
    along = b.T @ a
    cosine = torch.linalg.svdvals(along).clamp(max=1)
    sine = torch.linalg.svdvals(a - b @ along).flip(0).clamp(max=1)
    # Arccos would lose half of the digits of a small angle, arcsin of an angle near pi / 2.
    return torch.where(cosine.square() > 0.5, sine.asin(), cosine.acos())


class Overlaps(NamedTuple):
    """Overlap of the leading r principal directions of two sets a and b, for every rank r."""

    overlap: Tensor
    """[r] float64, mean squared cosine of the principal angles between the subspaces"""
    capture_ab: Tensor
    """[r] float64, share of the energy of a in the subspace of b"""
    capture_ba: Tensor
    """[r] float64, share of the energy of b in the subspace of a"""


def overlaps(a: Decomposition, b: Decomposition) -> Overlaps:
    """Compute overlaps and captures, in [0, 1], for each rank up to the smaller of both."""
    squares = (a.vectors.T @ b.vectors).square_()
    r = min(squares.shape)
    square = squares[:r, :r]
    # The sum over the leading r x r block is that over the block of r - 1 plus one row and column.
    added = square.tril().sum(1) + square.triu(1).sum(0)
    overlap = added.cumsum(0) / torch.arange(1, r + 1)
    capture_ab = (a.shares[: a.rank] @ squares)[:r].cumsum(0)
    capture_ba = (squares @ b.shares[: b.rank])[:r].cumsum(0)
    return Overlaps(*(curve.clamp(0, 1) for curve in (overlap, capture_ab, capture_ba)))


def excess(overlap: Tensor, d: int) -> Tensor:
    """Rescale overlaps [r] such that chance, r / d, is 0 and equality is 1; 0 where r = d."""
    chance = torch.arange(1, len(overlap) + 1, dtype=torch.float64) / d
    return torch.where(chance < 1, (overlap - chance) / (1 - chance).clamp(min=1 / (2 * d)), 0.0)


class Shared(NamedTuple):
    """Rank and dimension of the subspace shared by two sets of directions beyond chance."""

    rank: int
    dimensions: float


def shared_dimensions(overlap: Tensor, d: int) -> Shared:
    """Find the rank of an overlap curve [r] at which most dimensions are shared beyond chance.

    The number of these dimensions is rank * excess; for independent subspaces it is about 0, within
    one or two. Two sets that share a subspace of dimension q show all q at rank q: at a lower rank
    each set covers a different part of it, and further directions overlap by chance alone.

    Returns:
        The rank, and the number of dimensions shared beyond chance.
    """
    dimensions = excess(overlap, d) * torch.arange(1, len(overlap) + 1)
    return Shared(int(dimensions.argmax()) + 1, float(dimensions.amax()))


class Moments(NamedTuple):
    """Mean and standard deviation."""

    mean: float
    sd: float


def haar_overlap(r: int, d: int) -> Moments:
    """Return the moments of the overlap of two independent uniform subspaces of dimension r."""
    return Moments(r / d, _haar_sd(r - r * r / d, r - r * r / d, d) / r)


def haar_capture(shares: Tensor, r: int, d: int) -> Moments:
    """Return the moments of the energy share that a uniform subspace of dimension r captures."""
    return Moments(r / d, _haar_sd(float(shares.square().sum()) - 1 / d, r - r * r / d, d))


def _haar_sd(a: float, b: float, d: int) -> float:
    """Return the standard deviation of tr(A Q B Q^T) for a uniformly distributed rotation Q.

    `a` is tr(A^2) - tr(A)^2 / d, and `b` is tr(B^2) - tr(B)^2 / d.
    """
    return math.sqrt(max(2 * a * b / ((d - 1) * (d + 2)), 0.0)) if d > 1 else 0.0
