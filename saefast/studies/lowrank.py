"""Rare features in a subspace: the subspace recurs in every seed, single features do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.covariance import activation_covariance
from saefast.dictionary import Dictionary
from saefast.linalg import one_thread
from saefast.progress import tracked
from saefast.sae import SAE
from saefast.stability.result import Stability
from saefast.stability.score import at_threshold, score_stability
from saefast.studies.result import StudyResult
from saefast.subspace.angles import haar_overlap, principal_angles
from saefast.subspace.fit import fit_subspaces
from saefast.synthetic.low_rank import LowRankWorld
from saefast.synthetic.truth import RECOVERED, Explanation, explain, keep_only, recovery
from saefast.train.config import TrainConfig
from saefast.train.settings import AuxK
from saefast.train.train import train_saes

SIMILAR, CLOSE = 0.7, 0.9
"""Cosines above which a feature of one seed counts as found in another."""

DEAD_AFTER = 25_000
"""Rows without firing after which a latent gets the auxiliary loss."""
DRAWS = 20
"""Number of draws of the covariance null."""
COVARIANCE_ROWS = 32_768
"""Number of rows from which the covariance is estimated."""


@dataclass(frozen=True)
class LowRankDesign:
    """World and training of one run of the study."""

    rare: int = 1024
    """number of true features in the subspace"""
    rare_rate: float = 0.001
    rank: int = 32
    d: int = 128
    stable: int = 128
    """number of true features orthogonal to the subspace"""
    stable_rate: float = 0.03
    latents: int = 384
    k: int = 6
    seeds: int = 4
    steps: int = 3000
    batch_size: int = 512
    lr: float = 1e-3


SWEEP = tuple(LowRankDesign(rare=rare, rare_rate=1.024 / rare) for rare in (64, 256, 1024))
"""Designs with more and more features in the subspace, of which a row holds one on average."""


@dataclass(frozen=True)
class LowRankRow:
    """Measures of one design: means over seeds, or over pairs of seeds."""

    least_rate: float
    """share of rows on which a latent must fire to count; 0: at least one row"""
    rare: int
    rare_rate: float
    rank: int
    latents: int
    k: int
    alive: float
    """number of latents that count; the others enter none of the measures"""
    in_subspace: float
    """number of these latents that lie in the subspace rather than outside"""
    explained: float
    stable_back: float
    """share of latents outside the subspace with a similar one in another seed, mean over seeds"""
    subspace_back: float
    """the same for latents in the subspace"""
    subspace_back_close: float
    """the same at the higher cosine"""
    stable_recovered: float
    """share of true features outside the subspace that a latent is close to"""
    subspace_recovered: float
    unstable: float
    """number of latents that are found in few other seeds, or none"""
    overlap: float | None
    """overlap of two seeds' subspaces of unstable latents; None if too few are unstable"""
    overlap_truth: float | None
    """overlap of these subspaces with the true one"""
    overlap_null: float
    """expected overlap of two random subspaces"""
    overlap_covariance: float | None
    """overlap of the subspaces of as many directions drawn from the covariance of the rows"""
    keep_stable: float
    """variance explained by stable latents alone"""
    keep_unstable: float


def run_lowrank(
    out: str | Path | None = None,
    *,
    designs: Sequence[LowRankDesign] = SWEEP,
    rows: int = 65_536,
    least_rates: Sequence[float] = (0.0, 1e-4),
    seed: int = 0,
    progress: bool = True,
) -> StudyResult[LowRankRow]:
    """Show that unstable features can span a reproducible subspace in different bases.

    Each design plants frequent features outside a subspace and rare ones in it, and trains SAEs
    that differ only in their seed. The study measures which latents recur, the variance
    that they explain, and how far the subspaces of the others agree with each other and with
    the true one.

    Args:
        out: folder to write `lowrank.parquet` to; None writes nothing.
        designs: designs to run.
        rows: number of rows for the measures, on which no SAE was trained.
        least_rates: shares of these rows on which a latent must fire to count, with a row of the
            result for each. Latents that fire at all include some that training left unused, whose
            directions mean little.
        seed: seed of the worlds.
        progress: show progress bars on stderr.

    Returns:
        A row for each design and least rate. The same arguments give the same bits for any number
        of threads.
    """
    checks.whole("rows", rows, 1)
    for least_rate in least_rates:
        checks.at_least("least_rates", least_rate, 0, below=1)
    bar = tracked(designs, "designs", unit="designs", progress=progress)
    found = (row for design in bar for row in _rows(design, rows, least_rates, seed, progress))
    return StudyResult.of(found, out, "lowrank.parquet")


def _rows(
    design: LowRankDesign, rows: int, least_rates: Sequence[float], seed: int, progress: bool
) -> list[LowRankRow]:
    world = LowRankWorld.create(
        d=design.d,
        stable=design.stable,
        stable_rate=design.stable_rate,
        rank=design.rank,
        rare=design.rare,
        rare_rate=design.rare_rate,
        seed=seed,
    )
    saes = train_saes(world, _config(design), progress=progress, device="cpu")
    seen = [explain(sae, world, rows=rows) for sae in saes]
    return [_row(design, world, saes, seen, rows, least_rate) for least_rate in least_rates]


def _row(
    design: LowRankDesign,
    world: LowRankWorld,
    saes: Sequence[SAE],
    seen: Sequence[Explanation],
    rows: int,
    least_rate: float,
) -> LowRankRow:
    dictionaries = [
        Dictionary(sae.W_dec.detach(), firing_rate=each.firing_rate * _often(each, least_rate))
        for sae, each in zip(saes, seen, strict=True)
    ]
    stability = score_stability(dictionaries, threshold=SIMILAR, progress=False)
    kept = [
        keep_only(sae, world, groups, rows=rows)
        for sae, groups in zip(saes, stability.groups(), strict=True)
    ]
    return LowRankRow(
        least_rate=least_rate,
        rare=design.rare,
        rare_rate=design.rare_rate,
        rank=design.rank,
        latents=design.latents,
        k=design.k,
        alive=_mean([int(alive.sum()) for alive in stability.alive]),
        explained=_mean([each.explained_variance for each in seen]),
        **_by_block(dictionaries, stability, world)._asdict(),
        **_overlaps(dictionaries, stability, world, design.rank)._asdict(),
        keep_stable=_mean([each["stable"] for each in kept]),
        keep_unstable=_mean([each["unstable"] for each in kept]),
    )


def _config(design: LowRankDesign) -> TrainConfig:
    return TrainConfig(
        latents=design.latents,
        k=design.k,
        seeds=tuple(range(design.seeds)),
        tokens=design.steps * design.batch_size,
        batch_size=design.batch_size,
        lr=design.lr,
        auxk=AuxK(dead_after=DEAD_AFTER),
    )


def _often(seen: Explanation, least: float) -> Tensor:
    return seen.firing_rate >= least


class _Blocks(NamedTuple):
    """Fields of `LowRankRow` that are computed for each block of features."""

    in_subspace: float
    stable_back: float
    subspace_back: float
    subspace_back_close: float
    stable_recovered: float
    subspace_recovered: float
    unstable: float


class _Overlaps(NamedTuple):
    overlap: float | None
    overlap_truth: float | None
    overlap_null: float
    overlap_covariance: float | None


def _by_block(
    dictionaries: Sequence[Dictionary], stability: Stability, world: LowRankWorld
) -> _Blocks:
    """Return the shares of recurring and recovered features, in the subspace and outside."""
    inside = [_is_inside(dictionary.W_dec, world.subspace) for dictionary in dictionaries]
    inside = [alive & mask for alive, mask in zip(stability.alive, inside, strict=True)]
    outside = [alive & ~mask for alive, mask in zip(stability.alive, inside, strict=True)]
    close = at_threshold(stability, CLOSE)
    recovered = [recovery(dictionary, world).best > RECOVERED for dictionary in dictionaries]
    return _Blocks(
        in_subspace=_mean([int(mask.sum()) for mask in inside]),
        stable_back=_mean_of(stability.score, outside),
        subspace_back=_mean_of(stability.score, inside),
        subspace_back_close=_mean_of(close.score, inside),
        stable_recovered=_mean_of(recovered, [~world.in_subspace] * len(recovered)),
        subspace_recovered=_mean_of(recovered, [world.in_subspace] * len(recovered)),
        unstable=_mean([int(mask.sum()) for mask in stability.unstable()]),
    )


def _is_inside(features: Tensor, subspace: Tensor) -> Tensor:
    """Return which features have more than half of their square in the subspace, [m] bool."""
    features = features.double()
    with one_thread():
        inside = (features @ subspace.double().T).square().sum(1)
    return inside > features.square().sum(1) / 2


def _overlaps(
    dictionaries: Sequence[Dictionary], stability: Stability, world: LowRankWorld, rank: int
) -> _Overlaps:
    """Return overlaps of unstable latents' subspaces with each other, the true one and nulls."""
    found = fit_subspaces(
        dictionaries,
        stability,
        rank=rank,
        nulls=("covariance",),
        covariance=activation_covariance(world.sample(COVARIANCE_ROWS).x, progress=False),
        draws=DRAWS,
        progress=False,
    )
    spectra = [spectrum for spectrum in found.spectra if spectrum.group == "unstable"]
    chance = haar_overlap(rank, world.d).mean
    if any(spectrum.rank < rank for spectrum in spectra):
        return _Overlaps(None, None, chance, None)
    pairs = [pair for pair in found.pairs if pair.group == "unstable"]
    nulls = [test.mean for pair in pairs for test in pair.tests if test.statistic == "overlap"]
    angles = [principal_angles(spectrum.basis, world.subspace.double()) for spectrum in spectra]
    return _Overlaps(
        overlap=_mean([pair.overlap for pair in pairs]),
        overlap_truth=_mean([float(angle.cos().square().mean()) for angle in angles]),
        overlap_null=chance,
        overlap_covariance=_mean(nulls),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of(values: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """Return the mean over SAEs of the means over the features of each mask."""
    means = [v[mask].double().mean() for v, mask in zip(values, masks, strict=True) if mask.any()]
    return float(torch.stack(means).mean()) if means else float("nan")
