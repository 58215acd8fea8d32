"""Comparison of the subspaces of one group of features between seeds and with the nulls."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

from saefast.linalg import Run
from saefast.nulls.permutations import NullTest, beside
from saefast.subspace.angles import (
    Overlaps,
    angles_between,
    excess,
    haar_capture,
    haar_overlap,
    overlaps,
    shared_dimensions,
)
from saefast.subspace.nulls import Draw, Member, Null, band_of, draw
from saefast.subspace.results import Band, GroupSpectrum, PairOverlap
from saefast.subspace.spectra import Decomposition, decompose
from saefast.unit_rows import UnitRows


class Plan(NamedTuple):
    """Settings of the comparison, the same for every group; see `fit_subspaces`."""

    haar: bool
    """whether to compute the formulas of the null "haar" as well"""
    drawn: Sequence[Null]
    """nulls that are drawn"""
    rank: int | None
    """requested dimension of the subspaces; None for the energy rank"""
    energy: float
    """share of the energy that defines the energy rank"""
    band: float
    """share of the draws between the ends of a band"""
    seed: int
    """seed of the draws"""
    method: str
    """one of `spectra.METHODS`"""

    def rank_of(self, spectrum: Decomposition) -> int:
        """Return the dimension of the subspace that represents a group in one seed."""
        if self.rank is None:
            return spectrum.energy_rank(self.energy)
        return min(self.rank, spectrum.rank)


class Group(NamedTuple):
    """Results of one group."""

    spectra: list[GroupSpectrum]
    """a spectrum for each seed"""
    pairs: list[PairOverlap]
    """an overlap for each two seeds in which the group has features"""
    skipped: list[str]
    """comparisons that could not be computed, with reasons"""


def fit_group(
    name: str, members: Sequence[Member], plan: Plan, run: Run, step: Callable[[], object]
) -> Group:
    """Decompose a group in each seed and compare each two seeds with each other and the nulls.

    `step` is called once after the decomposition and once after each draw of a null.

    Returns:
        Spectra and overlaps of the group, with those of its nulls.
    """
    directions = [UnitRows.of_rows(member.rows, member.chosen) for member in members]
    known = decompose(directions, plan.method, run)
    step()
    present = [s for s, spectrum in enumerate(known) if spectrum.rank]
    pairs = list(combinations(present, 2))
    samples: dict[str, list[Draw]] = {}
    for null in plan.drawn:
        one = partial(draw, null, name, members, known, pairs, plan.seed, plan.method, plan.energy)
        samples[null.name] = []
        for sample in run(one, range(null.draws)):
            samples[null.name].append(sample)
            step()
    skipped = [
        f"group {name!r} in dictionary {s}: none of its features is alive"
        for s in range(len(members))
        if s not in present
    ]
    spectra = [
        _spectrum(name, s, known[s], member.dead, plan, samples) for s, member in enumerate(members)
    ]
    compared = run(lambda pair: _compare(known[pair[0]], known[pair[1]], plan), pairs)
    found = []
    for pair, (curves, angles) in zip(pairs, compared, strict=True):
        shares = known[pair[0]].shares, known[pair[1]].shares
        drawn = {null: [each.pairs[pair] for each in sample] for null, sample in samples.items()}
        found.append(_pair(name, pair, curves, angles, shares, plan, drawn))
        skipped += [
            f"null {null!r} of group {name!r}, dictionaries {pair[0]} and {pair[1]}: its subspaces "
            f"have only {len(band.mean)} of {len(angles)} dimensions"
            for null, band in found[-1].bands.items()
            if len(band.mean) < len(angles)
        ]
    return Group(spectra, found, skipped)


def _spectrum(
    name: str,
    seed: int,
    spectrum: Decomposition,
    dead: int,
    plan: Plan,
    samples: dict[str, list[Draw]],
) -> GroupSpectrum:
    # A rotation preserves the spectrum, so the null "rotated" does not test ranks.
    telling = {null: sample for null, sample in samples.items() if null != "rotated"}
    tests = [
        beside(null, rank, value, [each.ranks[seed][rank] for each in sample], plan.band, True)
        for null, sample in telling.items()
        if spectrum.rank
        for rank, value in spectrum.ranks(plan.energy).items()
    ]
    return GroupSpectrum(
        group=name,
        seed=seed,
        features=spectrum.size,
        dead=dead,
        rank=spectrum.rank,
        singular_values=spectrum.eigenvalues.sqrt(),
        effective_rank=spectrum.effective_rank,
        participation_ratio=spectrum.participation_ratio,
        energy_rank=spectrum.energy_rank(plan.energy),
        basis=spectrum.vectors[:, : plan.rank_of(spectrum)].T.contiguous(),
        tests=tuple(tests),
    )


def _compare(a: Decomposition, b: Decomposition, plan: Plan) -> tuple[Overlaps, Tensor]:
    r = min(plan.rank_of(a), plan.rank_of(b))
    return overlaps(a, b), angles_between(a.vectors[:, :r], b.vectors[:, :r])


def _pair(
    name: str,
    pair: tuple[int, int],
    curves: Overlaps,
    angles: Tensor,
    shares: tuple[Tensor, Tensor],
    plan: Plan,
    drawn: dict[str, list[Overlaps]],
) -> PairOverlap:
    r, d = len(angles), len(shares[0])
    at_rank = {statistic: float(curve[r - 1]) for statistic, curve in curves._asdict().items()}
    excesses = excess(curves.overlap, d)
    shared = shared_dimensions(curves.overlap, d)
    bands: dict[str, Band] = {}
    tests: list[NullTest] = []
    if plan.haar:
        mean = [haar_overlap(i + 1, d).mean for i in range(len(curves.overlap))]
        bands["haar"] = Band(mean=curves.overlap.new_tensor(mean))
        moments = (haar_overlap(r, d), *(haar_capture(each, r, d) for each in shares))
        tests += [
            NullTest(
                null="haar",
                statistic=statistic,
                value=value,
                mean=chance.mean,
                sd=chance.sd,
                draws=0,
            )
            for (statistic, value), chance in zip(at_rank.items(), moments, strict=True)
        ]
    for null, sample in drawn.items():
        length = len(curves.overlap)
        bands[null] = band_of([each.overlap for each in sample], length, plan.band)
        if len(bands[null].mean) < r:
            continue
        for statistic, value in at_rank.items():
            values = [float(getattr(each, statistic)[r - 1]) for each in sample]
            tests.append(beside(null, statistic, value, values, plan.band))
        # The rank is chosen for each draw, as it was for the observed overlaps.
        chance = [shared_dimensions(each.overlap[:length], d).dimensions for each in sample]
        tests.append(beside(null, "shared_dimensions", shared.dimensions, chance, plan.band))
    return PairOverlap(
        group=name,
        a=pair[0],
        b=pair[1],
        rank=r,
        overlap=at_rank["overlap"],
        excess=float(excesses[r - 1]),
        capture_ab=at_rank["capture_ab"],
        capture_ba=at_rank["capture_ba"],
        shared_rank=shared.rank,
        shared_dimensions=shared.dimensions,
        angles=angles,
        overlap_curve=curves.overlap,
        excess_curve=excesses,
        capture_ab_curve=curves.capture_ab,
        capture_ba_curve=curves.capture_ba,
        bands=bands,
        tests=tuple(tests),
    )
