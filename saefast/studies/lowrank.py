"""Rare features in a plane: no seed finds the same ones, every seed finds the plane."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from saefast.auxk import AuxK
from saefast.config import TrainConfig
from saefast.match_all import match_all
from saefast.one_thread import one_thread
from saefast.ops import checks
from saefast.studies.table import as_text, write_parquet
from saefast.synthetic.low_rank import LowRankWorld
from saefast.synthetic.truth import RECOVERED, explain, keep_only, recovery
from saefast.train import train_saes
from saefast.types import Dictionary

SIMILAR, CLOSE = 0.7, 0.9
"""cosines from which a feature of one seed counts as back in another"""
STABLE, UNSTABLE = 0.8, 0.2
"""share of the other seeds from which, and up to which, a feature is called so"""

DEAD_AFTER = 25_000
"""rows without firing after which a latent gets the auxiliary loss"""


@dataclass(frozen=True)
class LowRankDesign:
    """A world and how it is trained on."""

    rare: int = 1024
    """true features in the plane"""
    rare_rate: float = 0.001
    rank: int = 32
    d: int = 128
    stable: int = 128
    """true features outside of the plane"""
    stable_rate: float = 0.03
    latents: int = 384
    k: int = 6
    seeds: int = 4
    steps: int = 3000
    batch_size: int = 512
    lr: float = 1e-3


SWEEP = tuple(LowRankDesign(rare=rare, rare_rate=1.024 / rare) for rare in (64, 256, 512, 1024))
"""More and more features in the plane, of which each row holds one on average"""
NARROW = LowRankDesign(rank=16, rare=256, rare_rate=0.004)
IDENTIFIED = LowRankDesign(
    rare=64, rare_rate=0.03, latents=192, k=8, seeds=5, steps=4000, batch_size=1024
)
"""The control: few features in the plane, frequent enough for each to get a latent"""


@dataclass(frozen=True)
class LowRankRow:
    """What came of one design; means over seeds, and over ordered pairs of them."""

    rare: int
    rare_rate: float
    rank: int
    latents: int
    k: int
    alive: float
    """latents that fire often enough to count; the others are in none of the figures below"""
    in_plane: float
    """those of them that lie in the plane rather than outside"""
    explained: float
    stable_back: float
    """share of the latents outside of the plane, per other seed, with a similar one there"""
    plane_back: float
    """the same of those in the plane"""
    plane_back_close: float
    """the same at the higher cosine"""
    stable_recovered: float
    """share of the true features outside of the plane that a latent is close to"""
    plane_recovered: float
    unstable: float
    """latents that come back in few other seeds, or none"""
    overlap: float | None
    """of the planes that two seeds' unstable latents fill most; None where too few are unstable"""
    overlap_truth: float | None
    """of that plane and the true one"""
    overlap_null: float
    """of two random planes"""
    keep_stable: float
    """variance explained by stable latents alone"""
    keep_unstable: float


@dataclass(frozen=True)
class LowRankResult:
    """The rows of `run_lowrank`."""

    rows: tuple[LowRankRow, ...]
    written: tuple[Path, ...] = ()

    def table(self) -> str:
        """For people."""
        return as_text([asdict(row) for row in self.rows])


def run_lowrank(
    out: str | Path | None = None,
    *,
    designs: Sequence[LowRankDesign] = SWEEP,
    rows: int = 65_536,
    least_rate: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
) -> LowRankResult:
    """Show that unstable features can be one reproducible plane in different bases.

    Each design plants frequent features outside of a plane and rare ones in it, trains SAEs that
    differ in their seed only, and looks at which latents come back, what they explain, and how far
    the planes of those that do not come back agree with each other and with the true one.

    Args:
        out: folder to write `lowrank.parquet` to. Without it nothing is written.
        designs: what to try.
        rows: how many rows that no SAE was trained on are looked at.
        least_rate: on which share of these rows a latent must fire to count. Those that training
            left over fire on some in a million; where they point says nothing.
        seed: of the worlds.
        progress: show progress bars on stderr.

    Returns:
        A row for each design. The same arguments give the same bits on any number of threads.
    """
    from tqdm import tqdm

    checks.whole("rows", rows)
    checks.at_least("rows", rows, 1)
    checks.at_least("least_rate", least_rate, 0, below=1)
    bar = tqdm(designs, desc="designs", unit="design", disable=not progress)
    found = tuple(_row(design, rows, least_rate, seed, progress) for design in bar)
    if out is None:
        return LowRankResult(found)
    file = write_parquet([asdict(row) for row in found], Path(out) / "lowrank.parquet")
    return LowRankResult(found, (file,))


def _row(
    design: LowRankDesign, rows: int, least_rate: float, seed: int, progress: bool
) -> LowRankRow:
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
    dictionaries = [
        Dictionary(sae.W_dec.detach(), firing_rate=_counted(each.firing_rate, least_rate))
        for sae, each in zip(saes, seen, strict=True)
    ]
    alive = [dictionary.alive for dictionary in dictionaries]
    planar = [_lies_in(dictionary.W_dec, world.plane) for dictionary in dictionaries]
    outside = [a & ~p for a, p in zip(alive, planar, strict=True)]
    inside = [a & p for a, p in zip(alive, planar, strict=True)]
    back = _scores(dictionaries, SIMILAR)
    unstable = [a & (score <= UNSTABLE) for a, score in zip(alive, back, strict=True)]
    stable = [a & (score >= STABLE) for a, score in zip(alive, back, strict=True)]
    planes = [
        _main_plane(dictionary.W_dec[which], design.rank)
        for dictionary, which in zip(dictionaries, unstable, strict=True)
    ]
    kept = [
        keep_only(sae, world, {"stable": s, "unstable": u}, rows=rows)
        for sae, s, u in zip(saes, stable, unstable, strict=True)
    ]
    recovered = [recovery(dictionary, world).best > RECOVERED for dictionary in dictionaries]
    return LowRankRow(
        rare=design.rare,
        rare_rate=design.rare_rate,
        rank=design.rank,
        latents=design.latents,
        k=design.k,
        alive=_mean([int(a.sum()) for a in alive]),
        in_plane=_mean([int(each.sum()) for each in inside]),
        explained=_mean([each.explained_variance for each in seen]),
        stable_back=_mean_of(back, outside),
        plane_back=_mean_of(back, inside),
        plane_back_close=_mean_of(_scores(dictionaries, CLOSE), inside),
        stable_recovered=_mean_of(recovered, [~world.in_plane] * len(saes)),
        plane_recovered=_mean_of(recovered, [world.in_plane] * len(saes)),
        unstable=_mean([int(each.sum()) for each in unstable]),
        overlap=_mean_overlap(itertools.combinations(planes, 2)),
        overlap_truth=_mean_overlap((plane, world.plane.double()) for plane in planes),
        overlap_null=design.rank / design.d,
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


def _counted(rate: Tensor, least: float) -> Tensor:
    return rate * (rate >= least)


def _lies_in(features: Tensor, plane: Tensor) -> Tensor:
    """[m] bool: more than half of a feature's square is in the plane."""
    features = features.double()
    with one_thread():
        inside = (features @ plane.double().T).square().sum(1)
    return inside > features.square().sum(1) / 2


def _scores(dictionaries: Sequence[Dictionary], threshold: float) -> list[Tensor]:
    """[m] for each: in which share of the other dictionaries a feature has a similar one."""
    matches = match_all(dictionaries, progress=False)
    seeds = range(len(dictionaries))
    near = {pair: (found.similarity >= threshold).double() for pair, found in matches.items()}
    return [torch.stack([near[s, t] for t in seeds if t != s]).mean(0) for s in seeds]


def _main_plane(features: Tensor, rank: int) -> Tensor | None:
    """[rank, d] the directions in which features have most of their squares."""
    if len(features) < rank:
        return None
    with one_thread():
        found: Tensor = torch.linalg.svd(features.double(), full_matrices=False).Vh
    return found[:rank]


def _mean_overlap(pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> float | None:
    overlaps = []
    for a, b in pairs:
        if a is None or b is None:
            return None
        with one_thread():
            overlaps.append(float((a @ b.T).square().sum()) / len(a))
    return _mean(overlaps)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of(values: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """Over SAEs, of the means over the features that each mask names."""
    means = [v[mask].double().mean() for v, mask in zip(values, masks, strict=True) if mask.any()]
    return float(torch.stack(means).mean()) if means else float("nan")
