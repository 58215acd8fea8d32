"""Results of `fit_subspaces` and their tables."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saefast import checks
from saefast.disk.tables import table_of
from saefast.nulls.permutations import NullTest
from saefast.run_folder import SUBSPACE_TABLES
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Band:
    """Overlap under a null at each rank from 1, up to the smallest rank of its draws."""

    mean: Tensor
    """[r] float64, mean of the draws, or the expectation by a formula"""
    low: Tensor | None = None
    """[r] float64, lower end of the band of the draws; None for fewer than two draws"""
    high: Tensor | None = None
    """[r] float64, upper end of the band; None for fewer than two draws"""


@dataclass(frozen=True, kw_only=True)
class GroupSpectrum:
    """Spectrum of the directions of one group of features in one seed."""

    group: str
    """name of the group"""
    seed: int
    """position of the dictionary in the list"""
    features: int
    """number of alive features in the group"""
    dead: int
    """number of dead features in the group, which are ignored"""
    rank: int
    """dimension of the span of the features, up to rounding"""
    singular_values: Tensor
    """[d] float64, singular values of the features as unit rows, descending"""
    effective_rank: float
    """exponential of the entropy of the energy shares, which are the squared singular values
    divided by their sum"""
    participation_ratio: float
    """1 / the sum of the squared energy shares"""
    energy_rank: int
    """smallest number of principal directions that hold the share `energy` of the energy, by
    default 90 %"""
    basis: Tensor
    """[r, d] float64, orthonormal rows that span the subspace of the requested rank, or of rank
    `energy_rank`. The rows are arbitrary among equal singular values, and so is the subspace if it
    ends between equal ones"""
    tests: tuple[NullTest, ...]
    """comparisons of "effective_rank", "participation_ratio" and "energy_rank" with the drawn
    nulls except "rotated", which preserves them"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class PairOverlap:
    """Overlap of one group of features between two seeds, a and b."""

    group: str
    """name of the group"""
    a: int
    """position of the first dictionary in the list"""
    b: int
    """position of the second dictionary in the list"""
    rank: int
    """dimension of the compared subspaces"""
    overlap: float
    """mean squared cosine of their principal angles"""
    excess: float
    """overlap rescaled such that chance, rank / d, is 0 and equal subspaces are 1; 0 if rank is
    d"""
    capture_ab: float
    """share of the energy of a's features in b's subspace"""
    capture_ba: float
    """share of the energy of b's features in a's subspace"""
    shared_rank: int
    """dimension of the shared subspace, from the whole curve: the rank at which most dimensions are
    shared beyond chance. If singular values are equal, `rank` may truncate that subspace, and
    differently in each seed"""
    shared_dimensions: float
    """number of dimensions shared beyond chance: shared_rank * excess at that rank"""
    angles: Tensor
    """[rank] float64, principal angles between the subspaces, in radians, ascending"""
    overlap_curve: Tensor
    """[r] float64, overlap at each rank from 1 to the smaller rank of both seeds"""
    excess_curve: Tensor
    """[r] float64, excess at each rank"""
    capture_ab_curve: Tensor
    """[r] float64, `capture_ab` at each rank"""
    capture_ba_curve: Tensor
    """[r] float64, `capture_ba` at each rank"""
    bands: dict[str, Band]
    """overlap curve under each null, by the name of the null"""
    tests: tuple[NullTest, ...]
    """comparisons of "overlap", "capture_ab" and "capture_ba" at `rank`, and of
    "shared_dimensions", with the nulls"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Subspaces:
    """Subspaces spanned by groups of features, and their overlaps between seeds."""

    d: int
    """width of the dictionaries"""
    spectra: tuple[GroupSpectrum, ...]
    """spectra ordered by group, then seed"""
    pairs: tuple[PairOverlap, ...]
    """overlaps ordered by group, then seeds, for pairs in which both seeds have features"""
    skipped: tuple[str, ...]
    """nulls and comparisons that could not be computed, with reasons"""

    __repr__ = brief

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(dict.fromkeys(spectrum.group for spectrum in self.spectra))

    def spectrum(self, group: str, seed: int) -> GroupSpectrum:
        """Return the spectrum of one group in one seed.

        Args:
            group: name of the group.
            seed: position of the dictionary in the list.

        Returns:
            The spectrum.

        Raises:
            ValueError: there is no such group or position.
        """
        for spectrum in self.spectra:
            if (spectrum.group, spectrum.seed) == (group, seed):
                return spectrum
        raise ValueError(
            f"group must be one of {', '.join(self.groups)} and seed the position of a dictionary, "
            f"got {group!r} and {seed}"
        )

    def pair(self, group: str, a: int, b: int) -> PairOverlap:
        """Return the overlap of one group between two seeds.

        Args:
            group: name of the group.
            a: position of the first dictionary, less than `b`.
            b: position of the second dictionary.

        Returns:
            The overlap.

        Raises:
            ValueError: there is no such pair, or the group has no features in one of the seeds.
        """
        for pair in self.pairs:
            if (pair.group, pair.a, pair.b) == (group, a, b):
                return pair
        raise ValueError(
            f"a and b must be positions of two dictionaries, a < b, in which group {group!r} has "
            f"features, got {a} and {b}; {'; '.join(self.skipped) or 'no group was skipped'}"
        )

    def to_table(self, name: str = "pairs") -> "pa.Table":
        """Return one of six tables.

        Args:
            name: "pairs" has a row for each group and two seeds, "spectra" for each group and seed,
                "singular_values" for each value of a spectrum, "curves" for each pair and rank,
                "angles" for each angle of a pair, "nulls" for each statistic and null.

        Returns:
            A pyarrow table.
        """
        checks.one_of("name", name, SUBSPACE_TABLES)
        rows: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "pairs": lambda: map(_scalars, self.pairs),
            "spectra": lambda: map(_scalars, self.spectra),
            "singular_values": self._singular_values,
            "curves": self._curves,
            "angles": self._angles,
            "nulls": self._nulls,
        }
        return table_of(list(rows[name]()))

    def _singular_values(self) -> Iterator[dict[str, Any]]:
        for each in self.spectra:
            total = max(float(each.singular_values.square().sum()), 1e-300)
            for i, value in enumerate(each.singular_values.tolist(), 1):
                yield {
                    "group": each.group,
                    "seed": each.seed,
                    "index": i,
                    "singular_value": value,
                    "share": value * value / total,
                }

    def _curves(self) -> Iterator[dict[str, Any]]:
        for pair in self.pairs:
            columns = {
                "overlap": pair.overlap_curve,
                "excess": pair.excess_curve,
                "capture_ab": pair.capture_ab_curve,
                "capture_ba": pair.capture_ba_curve,
            }
            for null, band in pair.bands.items():
                columns |= {f"{null}_{name}": curve for name, curve in vars(band).items()}
            values = {
                name: [] if curve is None else curve.tolist() for name, curve in columns.items()
            }
            for i in range(len(pair.overlap_curve)):
                row = {"group": pair.group, "a": pair.a, "b": pair.b, "rank": i + 1}
                yield row | {
                    name: curve[i] if i < len(curve) else None for name, curve in values.items()
                }

    def _angles(self) -> Iterator[dict[str, Any]]:
        for pair in self.pairs:
            for i, angle in enumerate(pair.angles.tolist(), 1):
                yield {
                    "group": pair.group,
                    "a": pair.a,
                    "b": pair.b,
                    "index": i,
                    "angle": angle,
                }

    def _nulls(self) -> Iterator[dict[str, Any]]:
        for spectrum in self.spectra:
            for test in spectrum.tests:
                yield {"group": spectrum.group, "a": spectrum.seed, "b": None, **vars(test)}
        for pair in self.pairs:
            for test in pair.tests:
                yield {"group": pair.group, "a": pair.a, "b": pair.b, **vars(test)}


def _scalars(result: GroupSpectrum | PairOverlap) -> dict[str, Any]:
    return {
        name: value for name, value in vars(result).items() if isinstance(value, (str, int, float))
    }
