"""Principal angles and overlaps of two subspaces, and their expectations by chance."""

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
        b: [m2, d]; likewise.

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
    """Compute the principal angles of two orthonormal bases [d, r], ascending."""
    if a.shape[1] > b.shape[1]:
        a, b = b, a
    along = b.T @ a
    cosine = torch.linalg.svdvals(along).clamp(max=1)
    sine = torch.linalg.svdvals(a - b @ along).flip(0).clamp(max=1)
    # Each is accurate where its slope is not near zero: arccos would lose half of the digits of a
    # small angle.
    return torch.where(cosine.square() > 0.5, sine.asin(), cosine.acos())


class Overlaps(NamedTuple):
    """Two sets of directions, compared through their r strongest directions, for every r."""

    overlap: Tensor
    """[r] overlap of the subspaces: mean squared cosine of their principal angles"""
    capture_ab: Tensor
    """[r] share of a's energy in b's subspace"""
    capture_ba: Tensor
    """[r] share of b's energy in a's subspace"""


def overlaps(a: Decomposition, b: Decomposition) -> Overlaps:
    """Compute overlaps and captures, in [0, 1], for each r up to the smaller rank."""
    squares = (a.vectors.T @ b.vectors).square_()
    r = min(squares.shape)
    square = squares[:r, :r]
    # The square of size r is that of size r - 1, and what its last row and column add.
    added = square.tril().sum(1) + square.triu(1).sum(0)
    overlap = added.cumsum(0) / torch.arange(1, r + 1)
    capture_ab = (a.shares[: a.rank] @ squares)[:r].cumsum(0)
    capture_ba = (squares @ b.shares[: b.rank])[:r].cumsum(0)
    return Overlaps(*(curve.clamp(0, 1) for curve in (overlap, capture_ab, capture_ba)))


def excess(overlap: Tensor, d: int) -> Tensor:
    """[r] how far overlaps are above chance, r / d, if 1 is all there is; 0 for the whole space."""
    chance = torch.arange(1, len(overlap) + 1, dtype=torch.float64) / d
    return torch.where(chance < 1, (overlap - chance) / (1 - chance).clamp(min=1 / (2 * d)), 0.0)


class Shared(NamedTuple):
    """Rank and dimension of the subspace shared by two sets of directions beyond chance."""

    rank: int
    dimensions: float


def shared_plane(overlap: Tensor, d: int) -> Shared:
    """At which rank of the overlap curve [r] the most dimensions are beyond chance, and how many.

    Those are rank * excess: chance gives about 0 of them, within one or two. Two sets with a plane
    of dimension q in common show all q at rank q: with fewer directions each takes another part of
    it, and those beyond are shared by chance alone.
    """
    dimensions = excess(overlap, d) * torch.arange(1, len(overlap) + 1)
    return Shared(int(dimensions.argmax()) + 1, float(dimensions.amax()))


class Moments(NamedTuple):
    """Mean and standard deviation."""

    mean: float
    sd: float


def haar_overlap(r: int, d: int) -> Moments:
    """Of the overlap of two independent planes of dimension r, uniformly distributed."""
    return Moments(r / d, _haar_sd(r - r * r / d, r - r * r / d, d) / r)


def haar_capture(shares: Tensor, r: int, d: int) -> Moments:
    """Of what a uniformly distributed plane of dimension r captures of a spectrum's energy."""
    return Moments(r / d, _haar_sd(float(shares.square().sum()) - 1 / d, r - r * r / d, d))


def _haar_sd(a: float, b: float, d: int) -> float:
    """Of tr(A Q B Q^T) for a uniform rotation Q; `a` is tr(A^2) - tr(A)^2 / d, so is `b`."""
    return math.sqrt(max(2 * a * b / ((d - 1) * (d + 2)), 0.0)) if d > 1 else 0.0
