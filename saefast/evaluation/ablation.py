"""Contributions of groups of features, and of single features, to the reconstruction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.activations.one_pass import OnePass
from saefast.activations.protocol import ActivationSource
from saefast.disk.tables import table_of
from saefast.evaluation.reconstruction import Spread, sum_of_squares
from saefast.nulls.draws import Spreads, mass_matched, size_matched
from saefast.ops.gather_dots import gather_dots
from saefast.ops.sparse_decode import sparse_decode
from saefast.sae import SAE, as_saes
from saefast.stability.groups import Groups, as_groups
from saefast.types import SparseCode, brief

if TYPE_CHECKING:
    import pyarrow as pa

_CONTROLS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "size": size_matched,
    "mass": mass_matched,
}


@dataclass(frozen=True, kw_only=True)
class GroupFunction:
    """Contribution of one set of features; the code is always computed by the whole encoder."""

    group: str
    """name of the group"""
    control: str
    """"" for the group itself; "size" or "mass" for a random set of the same size or mass"""
    draw: int
    """index of the random set"""
    features: int
    """number of features in this set"""
    mass: float
    """share of the activation mass, NaN where it is unknown"""
    shared: float
    """share of the group that is in this set; 1 for the group itself"""
    keep: float
    """explained variance with the decoder rows of this set alone"""
    drop: float
    """explained variance with all other decoder rows"""


@dataclass(frozen=True, kw_only=True)
class FeatureFunction:
    """Contributions of one SAE's features to the rows of one pass.

    Explained variance is defined in `saefast.evaluation.reconstruction.CONVENTIONS`.
    """

    rows: int
    """number of rows read"""
    explained_variance: float
    """explained variance with all features"""
    variance: float
    """mean squared distance of a row to the mean row"""
    groups: tuple[GroupFunction, ...]
    """contributions of each group and of each of its random sets"""
    effect: Tensor
    """[m] float64: increase of the mean squared error of a row (summed over its width) if this
    feature alone is left out of the decoder's sum; negative if the feature adds to the error"""

    __repr__ = brief

    @property
    def lost_variance(self) -> Tensor:
        """Loss of explained variance if the feature is left out, [m] float64."""
        return self.effect / self.variance

    def summary(self) -> list[Spreads]:
        """Return a line for each group and each of its controls, over all draws."""
        lines = []
        for key in dict.fromkeys((row.group, row.control) for row in self.groups):
            found = [row for row in self.groups if (row.group, row.control) == key]
            keep, drop = (np.array([getattr(row, name) for row in found]) for name in _SIDES)
            std = [float(values.std(ddof=1)) if len(found) > 1 else 0.0 for values in (keep, drop)]
            lines.append(
                Spreads(
                    group=key[0],
                    control=key[1],
                    draws=len(found),
                    features=float(np.mean([row.features for row in found])),
                    keep=float(keep.mean()),
                    keep_std=std[0],
                    drop=float(drop.mean()),
                    drop_std=std[1],
                    shared=float(np.mean([row.shared for row in found])),
                )
            )
        return lines

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each group and each of its random sets."""
        return table_of([vars(row) for row in self.groups])


_SIDES = ("keep", "drop")


@torch.no_grad()
def feature_function(
    saes: SAE | Sequence[SAE],
    activations: ActivationSource,
    groups: Groups | Mapping[str, Tensor],
    *,
    mass: Tensor | Sequence[Tensor] | None = None,
    draws: int = 5,
    seed: int = 0,
    rows: int | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> list[FeatureFunction]:
    """Keep or drop groups of features in the decoder's sum, in one pass for all groups and SAEs.

    The same pass gives the effect of every single feature: with the error e = x - x_hat, leaving
    out feature i adds `2 z_i <e, d_i> + z_i^2 |d_i|^2` to the squared error of a row.

    Args:
        saes: SAEs of different seeds, for the same activations.
        activations: rows [n, d], preferably not those that the SAEs were trained on: any source
            that `saefast.activations.open_activations` accepts.
        groups: for each SAE its groups {name: [m] bool}, as returned by `Stability.groups`; a
            single dict if there is one SAE.
        mass: for each SAE its `FeatureStatistics.mass`, [m]. If given, every group is compared
            with random sets of as many features and random sets of as much activation mass; both
            are drawn from all features that fire, including those of the group.
        draws: number of random sets of each kind.
        seed: seed of the draws.
        rows: number of rows after which to stop; required for an iterator.
        batch_size: number of rows encoded at once; affects only time and memory.
        progress: show a progress bar on stderr.

    Returns:
        One result for each SAE, in their order.
    """
    one_pass = OnePass(
        activations, batch_size=batch_size, rows=rows, what="function", progress=progress
    )
    saes = as_saes(saes, one_pass.source.d)
    checks.whole("draws", draws)
    checks.at_least("draws", draws, 1)
    each_groups = as_groups(groups, [sae.m for sae in saes])
    each_mass: Sequence[Tensor | None] = [None] * len(saes)
    if mass is not None:
        each_mass = _for_each("mass", [mass] if isinstance(mass, Tensor) else mass, saes)
    sums = [
        _Sums(sae, _sets(sae, number, each_groups[number], each_mass[number], draws, seed))
        for number, sae in enumerate(saes)
    ]
    spread = Spread()
    for part in one_pass:
        spread.add(part.target)
        for its in sums:
            its.add(part.x, part.target)
    return [its.result(spread) for its in sums]


class _Set(NamedTuple):
    """A set of features with its description, as known before the pass."""

    group: str
    control: str
    draw: int
    mask: Tensor
    mass: float
    shared: float


class _Sums:
    """Running sums of one SAE: squared errors, and the effects of its features."""

    def __init__(self, sae: SAE, sets: list[_Set]) -> None:
        self._sae, self._sets = sae, sets
        self._masks = [its.mask.to(sae.W_dec.device) for its in sets]
        self._norm = sae.W_dec.double().square().sum(1)
        self._squares = 0.0
        self._kept = [0.0] * len(sets)
        self._dropped = [0.0] * len(sets)
        self._effect = torch.zeros(sae.m, dtype=torch.float64)

    def add(self, x: Tensor, target: Tensor) -> None:
        sae = self._sae
        rows = x.to(sae.W_dec)
        own = sae.encode(rows)
        code, nothing = (
            sae.contributions(own, rows),
            own._replace(values=torch.zeros_like(own.values)),
        )
        goal = target.to(sae.W_dec)
        error, rest = goal - sae.decode(own, rows), goal - sae.decode(nothing, rows)
        self._squares += sum_of_squares(error)
        self._effect += self._effects(code, error)
        for number, mask in enumerate(self._masks):
            values = code.values * mask[code.indices]
            part = sparse_decode(values, code.indices, sae.W_dec)
            self._kept[number] += sum_of_squares(rest - part)
            self._dropped[number] += sum_of_squares(error + part)

    def _effects(self, code: SparseCode, error: Tensor) -> Tensor:
        values = code.values.double()
        along = gather_dots(error, self._sae.W_dec, code.indices).double()
        grown = 2 * values * along + values.square() * self._norm[code.indices]
        return torch.bincount(
            code.indices.flatten().cpu(), weights=grown.flatten().cpu(), minlength=self._sae.m
        )

    def result(self, spread: Spread) -> FeatureFunction:
        groups = tuple(
            GroupFunction(
                group=its.group,
                control=its.control,
                draw=its.draw,
                features=int(its.mask.sum()),
                mass=its.mass,
                shared=its.shared,
                keep=spread.explained(kept),
                drop=spread.explained(dropped),
            )
            for its, kept, dropped in zip(self._sets, self._kept, self._dropped, strict=True)
        )
        return FeatureFunction(
            rows=spread.rows,
            explained_variance=spread.explained(self._squares),
            variance=spread.squares / spread.rows,
            groups=groups,
            effect=self._effect / spread.rows,
        )


def _sets(
    sae: SAE, number: int, groups: dict[str, Tensor], mass: Tensor | None, draws: int, seed: int
) -> list[_Set]:
    """Return the groups of one SAE, each followed by its controls."""
    known = None if mass is None else mass.double().cpu()
    if known is not None:
        checks.shape(f"mass[{number}]", known, (sae.m,))
    sets = []
    for name, mask in groups.items():
        mask = mask.cpu()
        drawn = [("", 0, mask)]
        if known is not None:
            drawn += [
                (control, draw, match(mask, known, seed, draw))
                for control, match in _CONTROLS.items()
                for draw in range(draws)
            ]
        for control, draw, its in drawn:
            its_mass = float("nan") if known is None else float(known[its].sum())
            shared = float((its & mask).sum()) / max(int(mask.sum()), 1)
            sets.append(_Set(name, control, draw, its, its_mass, shared))
    return sets


def _for_each(name: str, values: Sequence[Any], saes: Sequence[SAE]) -> Sequence[Any]:
    if len(values) != len(saes):
        raise ValueError(f"{name} must be one for each SAE, {len(saes)}, got {len(values)}")
    return values
