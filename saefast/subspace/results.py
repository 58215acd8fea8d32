"""Define the results of `fit_subspaces`, and their tables."""

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
    """The overlap under a null, for each r; as far as the null's planes go."""

    mean: Tensor
    low: Tensor | None = None
    """None for fewer than two draws"""
    high: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class GroupSpectrum:
    """The directions of one group of features in one seed."""

    group: str
    seed: int
    """the position among the dictionaries"""
    features: int
    """in the group and alive"""
    dead: int
    """in the group and left out"""
    rank: int
    """how many dimensions they span, as far as rounding lets see"""
    singular_values: Tensor
    """[d] of the unit rows, descending"""
    effective_rank: float
    """exp of the entropy of the shares of energy, which are the squared singular values'"""
    participation_ratio: float
    """1 / the sum of the squared shares"""
    energy_rank: int
    """the fewest principal directions that hold 90 % of the energy, or what `energy` says"""
    basis: Tensor
    """[r, d] orthonormal rows that span the subspace of the requested rank, or of `energy_rank`.
    The rows are arbitrary where singular values are equal, the subspace is not"""
    tests: tuple[NullTest, ...]
    """of "effective_rank", "participation_ratio" and "energy_rank" """

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class PairOverlap:
    """One group of features in two seeds, a and b."""

    group: str
    a: int
    b: int
    rank: int
    """dimension of the compared subspaces"""
    overlap: float
    """the mean squared cosine of their principal angles"""
    excess: float
    """how far that is above chance, rank / d, where 1 is all there is"""
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
    """[rank] angles between the subspaces, in radians, ascending"""
    overlap_curve: Tensor
    """[r] the overlap at each rank from 1; also of what follows"""
    excess_curve: Tensor
    capture_ab_curve: Tensor
    capture_ba_curve: Tensor
    bands: dict[str, Band]
    """by null: what the overlap curve would be"""
    tests: tuple[NullTest, ...]
    """of "overlap", "capture_ab" and "capture_ba" at the rank, and of "shared_dimensions" """

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Subspaces:
    """Subspaces spanned by groups of features, and their overlaps between seeds."""

    d: int
    spectra: tuple[GroupSpectrum, ...]
    """by group, then seed"""
    pairs: tuple[PairOverlap, ...]
    """by group, then seeds; only those in which both have features"""
    skipped: tuple[str, ...]
    """what could not be computed, and why"""

    __repr__ = brief

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(dict.fromkeys(spectrum.group for spectrum in self.spectra))

    def spectrum(self, group: str, seed: int) -> GroupSpectrum:
        """Return the spectrum of one group in one seed."""
        for spectrum in self.spectra:
            if (spectrum.group, spectrum.seed) == (group, seed):
                return spectrum
        raise ValueError(
            f"group must be one of {', '.join(self.groups)}, and seed the position of a "
            f"dictionary, got {group!r} and {seed}"
        )

    def pair(self, group: str, a: int, b: int) -> PairOverlap:
        """Return the overlap of one group between two seeds, a < b."""
        for pair in self.pairs:
            if (pair.group, pair.a, pair.b) == (group, a, b):
                return pair
        raise ValueError(
            f"there is no pair of seeds {a} and {b} in group {group!r}; a must be less than b, and "
            f"the group must have features in both: {'; '.join(self.skipped) or 'nothing skipped'}"
        )

    def to_table(self, name: str = "pairs") -> "pa.Table":
        """Return one of six tables.

        Args:
            name: "pairs", a row for each group and two seeds; "spectra", for each group and seed;
                "singular_values", for each of a spectrum; "curves", for each pair and rank;
                "angles", for each of a pair; "nulls", for each statistic and null.
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
