"""Draws of subspaces under null models in which seeds share nothing but a named property."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.linalg import covariance_root
from saefast.nulls.permutations import ends, generator_of
from saefast.subspace.angles import Overlaps, overlaps
from saefast.subspace.results import Band
from saefast.subspace.spectra import Decomposition, decompose
from saefast.unit_rows import UnitRows, normalised

NULLS = ("haar", "random", "covariance", "subset", "rotated", "initial")


class Member(NamedTuple):
    """One group of features in one seed."""

    rows: Tensor
    """[m, d] rows of all features of the seed"""
    chosen: Tensor
    """[n] int64, indices of the features that are in the group and alive"""
    dead: int
    """number of features that are in the group and dead"""
    alive: Tensor
    """int64, indices of all alive features of the seed"""
    initial: Tensor | None
    """[m, d] rows before training; None if they are unknown"""


class Draw(NamedTuple):
    """Result of one draw of a null."""

    ranks: list[dict[str, float]]
    """`Decomposition.ranks` for each seed"""
    pairs: dict[tuple[int, int], Overlaps]
    """overlaps for each pair of seeds"""


Replicate = Callable[[Member, Decomposition, torch.Generator, str], Decomposition]
"""Function that draws the principal directions which replace those of a member.

It takes the member, its own decomposition, a generator and one of `spectra.METHODS`.
"""


class Null(NamedTuple):
    """Null model that is drawn."""

    name: str
    """one of `NULLS`"""
    replicate: Replicate
    """function that draws the directions of one group in one seed"""
    draws: int
    """number of draws"""


def drawn_nulls(names: Sequence[str], draws: int, covariance: Tensor | None) -> list[Null]:
    """Return the requested nulls that are drawn: all except "haar", which has formulas."""
    known = {
        "random": (_gaussian(None), draws),
        "subset": (_subset, draws),
        "rotated": (_rotated, draws),
        "initial": (_initial, 1),
    }
    if covariance is not None:
        known["covariance"] = (
            _gaussian(covariance_root(covariance.to("cpu", torch.float64))),
            draws,
        )
    return [Null(name, *known[name]) for name in names if name in known]


def draw(
    null: Null,
    group: str,
    members: Sequence[Member],
    known: Sequence[Decomposition],
    pairs: Sequence[tuple[int, int]],
    seed: int,
    method: str,
    energy: float,
    number: int,
) -> Draw:
    """Draw directions for each seed from a null, and compute their overlaps.

    The drawn directions depend only on the seed, the names of null and group, the number of the
    draw and the position of the dictionary, not on the other nulls and groups of the call.

    Returns:
        Ranks of the drawn directions, and their overlaps by pair.
    """
    spectra = []
    for position, (member, own) in enumerate(zip(members, known, strict=True)):
        generator = generator_of(seed, null.name, group, number, position)
        spectra.append(null.replicate(member, own, generator, method))
    found = {(a, b): overlaps(spectra[a], spectra[b]) for a, b in pairs}
    return Draw([each.ranks(energy) for each in spectra], found)


def band_of(curves: Sequence[Tensor], length: int, band: float) -> Band:
    """Return the mean and band of curves [*], up to the shortest curve and at most `length`."""
    length = min(length, *(len(curve) for curve in curves))
    drawn = torch.stack([curve[:length] for curve in curves])
    if len(drawn) < 2:
        return Band(mean=drawn[0])
    low, high = drawn.quantile(drawn.new_tensor(ends(band)), dim=0)
    return Band(mean=drawn.mean(0), low=low, high=high)


@dataclass(frozen=True)
class _Drawn:
    """Normal vectors with covariance root^T root, scaled to length 1.

    Blocks have to be drawn in ascending order.
    """

    count: int
    """number of vectors"""
    root: Tensor | None
    """[rank, width] float64; None for the identity"""
    width: int
    """width of the vectors"""
    generator: torch.Generator
    """source of random numbers"""

    def __len__(self) -> int:
        return self.count

    def block(self, start: int, stop: int) -> Tensor:
        """Draw vectors `start` to `stop`; see `UnitVectors`."""
        rank = self.width if self.root is None else len(self.root)
        rows = torch.randn(stop - start, rank, generator=self.generator, dtype=torch.float64)
        return normalised(rows if self.root is None else rows @ self.root)


def _gaussian(root: Tensor | None) -> Replicate:
    """Return a function that draws as many normal directions as the group has features.

    Their covariance is root^T root, or the identity if `root` is None.
    """

    def replicate(
        member: Member, own: Decomposition, generator: torch.Generator, method: str
    ) -> Decomposition:
        drawn = _Drawn(len(member.chosen), root, member.rows.shape[1], generator)
        return decompose([drawn], method)[0]

    return replicate


def _subset(
    member: Member, own: Decomposition, generator: torch.Generator, method: str
) -> Decomposition:
    """Draw as many alive features of the same seed as the group has."""
    chosen = torch.randperm(len(member.alive), generator=generator)[: len(member.chosen)]
    index = member.alive[chosen.sort().values]
    return decompose([UnitRows.of_rows(member.rows, index)], method)[0]


def _rotated(
    member: Member, own: Decomposition, generator: torch.Generator, method: str
) -> Decomposition:
    """Rotate the directions of the group by a uniform random rotation, which keeps the spectrum."""
    shape = own.vectors.shape
    # A uniform rotation maps any orthonormal basis to a uniform one. Signs do not matter.
    frame = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q
    return own._replace(vectors=frame)


def _initial(
    member: Member, own: Decomposition, generator: torch.Generator, method: str
) -> Decomposition:
    """Decompose the latents of the group as they were before training."""
    if member.initial is None:
        raise ValueError("initial must be given for the null 'initial'")
    alive = (member.initial[member.chosen] != 0).any(1).cpu()
    return decompose([UnitRows.of_rows(member.initial, member.chosen[alive])], method)[0]
