"""Comparison of a dictionary and an SAE's reconstructions with the truth of a world."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary, Features, as_dictionary
from saefast.match.features import match_features
from saefast.ops.latent_sum import column_sum
from saefast.sae import SAE
from saefast.synthetic.world import Drawn, World
from saefast.types import SparseCode, brief

if TYPE_CHECKING:
    import pyarrow as pa

RECOVERED = 0.8
"""Cosine above which a latent recovers a true feature."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Comparison of a dictionary with the true features; only latents that are alive count."""

    best: Tensor
    """[m], largest signed cosine of each true feature with a latent"""
    truth: Tensor
    """[latents] int64, true feature nearest to each latent by absolute cosine; -1: dead"""
    mcc: float
    """mean absolute cosine of the best one-to-one pairs, over the smaller of both sides"""
    uniqueness: float
    """number of distinct true features nearest to a latent, divided by the number of latents"""

    __repr__ = brief

    @property
    def recovered(self) -> float:
        """Share of true features with a cosine above `RECOVERED` to some latent."""
        return float((self.best > RECOVERED).double().mean())

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each true feature.

        `latents` counts the latents nearest to it.
        """
        import pyarrow as pa

        latents = torch.bincount(self.truth[self.truth >= 0], minlength=len(self.best))
        return pa.table(
            {
                "feature": torch.arange(len(self.best)).numpy(),
                "best": self.best.numpy(),
                "recovered": (self.best > RECOVERED).numpy(),
                "latents": latents.numpy(),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Quality of an SAE's reconstructions of a world's rows."""

    explained_variance: float
    """1 - squared errors / squared distances to the mean row, both summed over all rows"""
    shrinkage: float
    """mean length of a reconstruction over the length of its row, rows of zeros left out"""
    l0: float
    """mean number of latents that fire in a row"""
    firing_rate: Tensor
    """[latents] float64, share of rows in which the latent fires"""
    f1: Tensor
    """[latents] float64, F1 score of firing as a prediction that the latent's true feature fires

    0 where the latent is dead, or neither of the two fires
    """

    __repr__ = brief

    @property
    def mean_f1(self) -> float:
        """Mean of `f1` over latents that fire."""
        fires = self.firing_rate > 0
        return float(self.f1[fires].mean()) if bool(fires.any()) else 0.0

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each latent."""
        import pyarrow as pa

        return pa.table(
            {
                "feature": torch.arange(len(self.f1)).numpy(),
                "firing_rate": self.firing_rate.numpy(),
                "f1": self.f1.numpy(),
            }
        )


def recovery(dictionary: Features, world: World) -> Recovery:
    """Compare the directions of a dictionary with the true features.

    Args:
        dictionary: an SAE, a `Dictionary`, or a tensor [latents, d] of decoder rows.
        world: world with features [m, d].

    Returns:
        Similarities of features and latents, and summaries of them.
    """
    found = as_dictionary(dictionary)
    checks.size("dictionary.W_dec", found.W_dec, 1, world.d, "the width of the world")
    truths = Dictionary(world.features.to(found.W_dec.dtype))
    alive = int(found.alive.sum())
    if alive == 0:
        nothing = torch.full((found.m,), -1)
        return Recovery(best=torch.zeros(world.m), truth=nothing, mcc=0.0, uniqueness=0.0)
    nearest = match_features(found, truths, absolute=True).partner
    pairs = match_features(found, truths, one_to_one=True, absolute=True)
    return Recovery(
        best=match_features(truths, found).similarity,
        truth=nearest,
        mcc=float(pairs.similarity.double().sum()) / min(alive, world.m),
        uniqueness=len(torch.unique(nearest[nearest >= 0])) / alive,
    )


@torch.no_grad()
def explain(sae: SAE, world: World, *, rows: int = 65_536, seed: int = 1) -> Explanation:
    """Measure how well an SAE reconstructs rows that it was not trained on.

    Args:
        sae: SAE of unscaled activations, on the CPU.
        world: world to draw rows from, of the SAE's width.
        rows: number of rows.
        seed: seed of the stream of rows; it should differ from the `data_seed` of the training.

    Returns:
        Quality of the reconstructions and of the code.
    """
    checks.size("sae.W_dec", sae.W_dec, 1, world.d, "the width of the world")
    alive = as_dictionary(sae).alive
    truth = torch.full((sae.m,), -1)
    if bool(alive.any()):
        truth = match_features(sae, world.features, absolute=True).partner
    spread, shrunk = _Spread(world.d), torch.zeros(2, dtype=torch.float64)
    fired, hits = (torch.zeros(sae.m, dtype=torch.int64) for _ in range(2))
    shown = torch.zeros(world.m, dtype=torch.int64)
    for drawn in world.blocks(rows, seed=seed):
        code = sae.encode(drawn.x)
        reconstruction = sae.decode(code, drawn.x)
        spread.add(drawn.x, {"all": reconstruction})
        shrunk += _lengths(reconstruction, drawn.x)
        there = drawn.values > 0
        shown += torch.bincount(drawn.indices[there], minlength=world.m)
        latents = code.indices[code.values != 0]
        fired += torch.bincount(latents, minlength=sae.m)
        hits += torch.bincount(latents[_right(code, drawn, truth, world.m)], minlength=sae.m)
    either = fired + shown[truth.clamp(min=0)]
    f1 = torch.where((truth >= 0) & (hits > 0), 2 * hits / either.clamp(min=1).double(), 0.0)
    return Explanation(
        explained_variance=spread.explained["all"],
        shrinkage=float(shrunk[0] / shrunk[1]) if shrunk[1] > 0 else 0.0,
        l0=int(fired.sum()) / rows,
        firing_rate=fired.double() / rows,
        f1=f1,
    )


@torch.no_grad()
def keep_only(
    sae: SAE, world: World, masks: Mapping[str, Tensor], *, rows: int = 65_536, seed: int = 1
) -> dict[str, float]:
    """Return the variance explained if only the latents of a mask are decoded.

    The encoder keeps all latents, so their values do not depend on the mask.

    Args:
        sae: SAE of unscaled activations, on the CPU.
        world: world to draw rows from, of the SAE's width.
        masks: [latents] bool each, by name.
        rows: number of rows.
        seed: seed of the stream of rows.

    Returns:
        Explained variance by name.
    """
    spread = _Spread(world.d)
    for drawn in world.blocks(rows, seed=seed):
        code = sae.encode(drawn.x)
        parts = {}
        for name, mask in masks.items():
            kept = SparseCode(code.values * mask[code.indices], code.indices)
            parts[name] = sae.decode(kept, drawn.x)
        spread.add(drawn.x, parts)
    return spread.explained


class _Spread:
    """Sums over rows in float64, in an order that does not depend on the number of threads."""

    def __init__(self, d: int) -> None:
        self._rows = 0
        self._sum, self._squares = (torch.zeros(d, dtype=torch.float64) for _ in range(2))
        self._errors: dict[str, float] = {}

    def add(self, x: Tensor, reconstructions: Mapping[str, Tensor]) -> None:
        """Add rows and their reconstructions."""
        rows = x.double()
        self._rows += len(rows)
        self._sum += column_sum(rows)
        self._squares += column_sum(rows.square())
        for name, made in reconstructions.items():
            error = float(column_sum((made.double() - rows).square()).sum())
            self._errors[name] = self._errors.get(name, 0.0) + error

    @property
    def explained(self) -> dict[str, float]:
        total = float((self._squares - self._sum.square() / max(self._rows, 1)).sum())
        return {name: 1 - error / total for name, error in self._errors.items()}


def _lengths(made: Tensor, x: Tensor) -> Tensor:
    """Return the sum of the ratios of lengths and the number of ratios, float64 [2]."""
    of_made, of_x = (torch.linalg.vector_norm(rows.double(), dim=1) for rows in (made, x))
    there = of_x > 0
    ratios = of_made[there] / of_x[there]
    return torch.stack([column_sum(ratios[:, None])[0], there.sum().double()])


def _right(code: SparseCode, drawn: Drawn, truth: Tensor, m: int) -> Tensor:
    """Return for every latent that fires whether its true feature, one of m, fires in that row."""
    there = torch.zeros(len(drawn.x), m + 1, dtype=torch.bool)  # the last column stays false
    row, place = (drawn.values > 0).nonzero(as_tuple=True)
    there[row, drawn.indices[row, place]] = True
    row, place = (code.values != 0).nonzero(as_tuple=True)
    wanted = truth[code.indices[row, place]]
    return there[row, torch.where(wanted < 0, m, wanted)]
