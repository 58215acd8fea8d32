"""Explained variance beside the recovery of known features, which it does not imply."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saefast import checks
from saefast.dictionary import Dictionary
from saefast.nulls.cosines import BestOfRandom
from saefast.progress import tracked
from saefast.sae import SAE, VARIANTS
from saefast.studies.result import StudyResult
from saefast.synthetic.sphere import FIRING, sphere_world
from saefast.synthetic.truth import explain, recovery
from saefast.synthetic.world import World
from saefast.train.config import TrainConfig
from saefast.train.settings import AuxK, Rules
from saefast.train.train import train_saes

BASELINES = {
    "trained": Rules(clip=1.0),
    "frozen decoder": Rules(clip=1.0, frozen="decoder"),
    "soft-frozen decoder": Rules(clip=1.0, tether=0.8),
    "frozen encoder": Rules(clip=1.0, frozen="encoder"),
}
"""Rules of training, by name.

Everything learns; all but the decoder; the decoder within a cap around its initial directions; all
but the encoder.
"""


@dataclass(frozen=True)
class RecoverySize:
    """Size of the world and of the trainings."""

    features: int
    d: int
    l0: float
    """true features per row; also the `k` of the SAEs"""
    tokens: tuple[int, ...]
    """numbers of rows to train on, each in a separate run"""
    batch_size: int
    lr: float
    dead_after: int
    """rows without firing after which a latent gets the auxiliary loss"""


SIZES = {
    "small": RecoverySize(800, 50, 8.0, (100_000, 400_000, 1_600_000), 1024, 2e-3, 100_000),
    "paper": RecoverySize(
        3200, 100, 20.0, (2_000_000, 20_000_000, 200_000_000), 4096, 1e-3, 1_000_000
    ),
}
"""Sizes of the study: "small" for a CPU, "paper" for a GPU.

"paper" is the size of the sanity checks by Korznikov et al. 2026, who do not report the length of
their trainings.
"""


@dataclass(frozen=True)
class RecoveryRow:
    """One SAE after training."""

    firing: str
    variant: str
    rules: str
    """name in `BASELINES`"""
    tokens: int
    explained: float
    recovered: float
    """share of true features with a latent whose cosine is above 0.8"""
    best_cosine: float
    """mean over true features of the largest cosine with a latent"""
    best_cosine_null: float
    """the same for as many random directions"""
    mcc: float
    f1: float
    uniqueness: float
    shrinkage: float
    l0: float
    alive: float
    """share of latents that fire on the rows of the measures"""


def run_recovery(
    out: str | Path | None = None,
    *,
    size: str | RecoverySize = "small",
    firing: Sequence[str] = FIRING,
    variants: Sequence[str] = VARIANTS,
    baselines_of: str = "batchtopk",
    rows: int = 32_768,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> StudyResult[RecoveryRow]:
    """Train on worlds with known features, and compare explained variance with recovery.

    All SAEs of a world start from the same directions, see the same rows in the same order, and
    have as many latents as there are true features.

    Args:
        out: folder to write `recovery.parquet` to; None writes nothing.
        size: name in `SIZES`, or your own size.
        firing: distributions of firing rates; see `sphere_world`.
        variants: variants of SAEs to train.
        baselines_of: variant that is also trained with each side frozen, and tethered.
        rows: number of rows for the measures, on which no SAE was trained.
        seed: seed of worlds and SAEs.
        device: device of the training; None: a CUDA device if there is one.
        progress: show progress bars on stderr.

    Returns:
        A row for each world, number of training rows, and SAE.
    """
    chosen = _size(size)
    for name, values, choices in (
        ("firing", firing, FIRING),
        ("variants", [*variants, baselines_of], VARIANTS),
    ):
        for value in values:
            checks.one_of(name, value, choices)
    found: list[RecoveryRow] = []
    runs = [(kind, tokens) for kind in firing for tokens in chosen.tokens]
    for kind, tokens in tracked(runs, "worlds", unit="runs", progress=progress):
        world = sphere_world(chosen.features, chosen.d, firing=kind, l0=chosen.l0, seed=seed)
        configs = list(_configs(chosen, tokens, variants, baselines_of, seed))
        saes = train_saes(world, configs, progress=progress, device=device)
        found += [
            _row(kind, config, sae.cpu(), world, rows)
            for config, sae in zip(configs, saes, strict=True)
        ]
    return StudyResult.of(found, out, "recovery.parquet")


def _size(size: str | RecoverySize) -> RecoverySize:
    if isinstance(size, RecoverySize):
        return size
    if not isinstance(size, str):
        raise TypeError(f"size must be a str or a RecoverySize, got {type(size).__name__}")
    checks.one_of("size", size, tuple(SIZES))
    return SIZES[size]


def _configs(
    size: RecoverySize, tokens: int, variants: Sequence[str], baselines_of: str, seed: int
) -> Iterator[TrainConfig]:
    frozen = [(baselines_of, name) for name in BASELINES if name != "trained"]
    for variant, name in [*((variant, "trained") for variant in variants), *frozen]:
        yield TrainConfig(
            latents=size.features,
            k=round(size.l0),
            variant=variant,
            seeds=(seed,),
            tokens=tokens,
            batch_size=size.batch_size,
            lr=size.lr,
            # A frozen or tethered decoder cannot follow the auxiliary loss.
            auxk=AuxK(dead_after=size.dead_after) if name == "trained" else None,
            rules=BASELINES[name],
            name=f"{variant} {name}",
        )


def _row(kind: str, config: TrainConfig, sae: SAE, world: World, rows: int) -> RecoveryRow:
    seen = explain(sae, world, rows=rows)
    found = recovery(Dictionary(sae.W_dec.detach(), firing_rate=seen.firing_rate), world)
    alive = int((seen.firing_rate > 0).sum())
    return RecoveryRow(
        firing=kind,
        variant=config.variant,
        rules=config.name.removeprefix(f"{config.variant} "),
        tokens=config.tokens,
        explained=seen.explained_variance,
        recovered=found.recovered,
        best_cosine=float(found.best.mean()),
        best_cosine_null=BestOfRandom(alive, world.d).mean(),
        mcc=found.mcc,
        f1=seen.mean_f1,
        uniqueness=found.uniqueness,
        shrinkage=seen.shrinkage,
        l0=seen.l0,
        alive=alive / sae.m,
    )
