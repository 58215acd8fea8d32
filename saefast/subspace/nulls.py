"""What subspaces would look like if seeds had nothing in common: draws to set beside them."""

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
    """[m, d] of all the seed's features"""
    chosen: Tensor
    """int64: which are in the group and alive"""
    dead: int
    """how many are in the group and left out"""
    alive: Tensor
    """int64: which are alive"""
    initial: Tensor | None
    """[m, d] before training"""


class Draw(NamedTuple):
    """What one draw of a null gives."""

    ranks: list[dict[str, float]]
    """of the seeds: `Decomposition.ranks`"""
    pairs: dict[tuple[int, int], Overlaps]


Replicate = Callable[[Member, Decomposition, torch.Generator, str], Decomposition]
"""Other directions for a member, given its own, by one of `spectra.METHODS`"""


class Null(NamedTuple):
    """UnitRows that seeds might have had instead of their own."""

    name: str
    replicate: Replicate
    draws: int


def drawn_nulls(names: Sequence[str], draws: int, covariance: Tensor | None) -> list[Null]:
    """Those of the names that have no formula."""
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
    """One draw: other directions for each seed, and how they overlap.

    What is drawn is a function of the seed, the names of null and group, the number of the draw and
    the position of the dictionary, whatever else is asked for.
    """
    spectra = []
    for position, (member, own) in enumerate(zip(members, known, strict=True)):
        generator = generator_of(seed, null.name, group, number, position)
        spectra.append(null.replicate(member, own, generator, method))
    found = {(a, b): overlaps(spectra[a], spectra[b]) for a, b in pairs}
    return Draw([each.ranks(energy) for each in spectra], found)


def band_of(curves: Sequence[Tensor], length: int, band: float) -> Band:
    """Of curves of one null, as far as all of them go, and `length`."""
    length = min(length, *(len(curve) for curve in curves))
    drawn = torch.stack([curve[:length] for curve in curves])
    if len(drawn) < 2:
        return Band(mean=drawn[0])
    low, high = drawn.quantile(drawn.new_tensor(ends(band)), dim=0)
    return Band(mean=drawn.mean(0), low=low, high=high)


@dataclass(frozen=True)
class _Drawn:
    """Normal vectors of a covariance root^T root, at length 1; blocks are drawn in their order."""

    count: int
    root: Tensor | None
    """[rank, width]; None for the identity"""
    width: int
    generator: torch.Generator

    def __len__(self) -> int:
        return self.count

    def block(self, start: int, stop: int) -> Tensor:
        """See `UnitVectors`."""
        rank = self.width if self.root is None else len(self.root)
        rows = torch.randn(stop - start, rank, generator=self.generator, dtype=torch.float64)
        return normalised(rows if self.root is None else rows @ self.root)


def _gaussian(root: Tensor | None) -> Replicate:
    """As many normal directions as the group has, of a covariance or of none, at length 1."""

    def replicate(
        member: Member, own: Decomposition, generator: torch.Generator, method: str
    ) -> Decomposition:
        drawn = _Drawn(len(member.chosen), root, member.rows.shape[1], generator)
        return decompose([drawn], method)[0]

    return replicate


def _subset(
    member: Member, own: Decomposition, generator: torch.Generator, method: str
) -> Decomposition:
    """As many features of the same seed, at random."""
    chosen = torch.randperm(len(member.alive), generator=generator)[: len(member.chosen)]
    index = member.alive[chosen.sort().values]
    return decompose([UnitRows.of_rows(member.rows, index)], method)[0]


def _rotated(
    member: Member, own: Decomposition, generator: torch.Generator, method: str
) -> Decomposition:
    """The group's own directions, turned by a uniform rotation: their spectrum stays."""
    shape = own.vectors.shape
    # A rotation takes an orthonormal basis to a uniform one, whichever it was. Signs do not matter.
    frame = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q
    return own._replace(vectors=frame)


def _initial(
    member: Member, own: Decomposition, generator: torch.Generator, method: str
) -> Decomposition:
    """The group's latents before training."""
    if member.initial is None:
        raise ValueError("there are no latents before training")
    alive = (member.initial[member.chosen] != 0).any(1).cpu()
    return decompose([UnitRows.of_rows(member.initial, member.chosen[alive])], method)[0]
