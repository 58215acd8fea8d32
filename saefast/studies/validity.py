"""Do measures rank SAEs by how much of a planted truth they hold, and grow as training goes on?

The second lens of the audit arXiv:2605.18229, on worlds whose features are known: SAEs of different
k, variant and length of training are ranked by each measure that needs no truth, and by the truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary
from saefast.disk.tables import write_rows
from saefast.evaluation.absorption.evaluation import MAIN_F1, PRIMARY, absorb_rows
from saefast.evaluation.intervals import auroc
from saefast.match.features import match_features
from saefast.nulls.permutations import generator_of
from saefast.ops.latent_sum import latent_sum
from saefast.progress import tracked
from saefast.sae import SAE, VARIANTS, code_of
from saefast.studies.table import as_text
from saefast.synthetic.nested import nested_world
from saefast.synthetic.truth import explain, recovery
from saefast.synthetic.world import Drawn, World
from saefast.train.config import TrainConfig
from saefast.train.settings import AuxK
from saefast.train.train import train_saes

MEASURES = (
    "explained_variance",
    "probing",
    "no_absorption",
    "main_f1",
    "stability",
    "alive",
)
"""What ranks SAEs: variance explained; AUROC of the best latent for a planted label, chosen on
other rows; 1 - absorption fraction of roots of families; F1 of their main latents; mean cosine of
latents to their partners in an SAE of another seed; share of latents that fire"""
TRUTHS = ("f1", "mcc")
"""Truths to be ranked by: how well latents tell when their true feature fires; mean cosine of
one-to-one pairs of latents and true features"""

_DRAWS = 2000
_UNKNOWN = (float("nan"), float("nan"), float("nan"))
_TAIL = 0.025


@dataclass(frozen=True)
class ValiditySize:
    """How large the world is, which SAEs are ranked, and on how many rows."""

    features: int
    d: int
    trees: int
    """families of features, whose roots are the classes of absorption"""
    latents: int
    widths: tuple[float, ...]
    """k of the SAEs, as shares of the true number of features per row"""
    tokens: tuple[int, ...]
    """rows that SAEs of each width are trained on"""
    variants: tuple[str, ...]
    checkpoints: tuple[int, ...]
    """rows seen at the checkpoints of one training"""
    batch_size: int
    lr: float
    rows: int
    """rows that measures are taken on"""
    tasks: int
    """planted labels that are probed"""


SIZES = {
    "small": ValiditySize(
        features=48,
        d=24,
        trees=5,
        latents=48,
        widths=(0.5, 2.0),
        tokens=(2_048, 32_768),
        variants=("topk",),
        checkpoints=(1_024, 16_384),
        batch_size=256,
        lr=5e-3,
        rows=4_096,
        tasks=8,
    ),
    "full": ValiditySize(
        features=512,
        d=64,
        trees=24,
        latents=512,
        widths=(0.5, 1.0, 2.0),
        tokens=(60_000, 600_000),
        variants=("topk", "batchtopk", "jumprelu", "matryoshka"),
        checkpoints=(16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576),
        batch_size=1024,
        lr=2e-3,
        rows=32_768,
        tasks=64,
    ),
}
"""small: for tests; full: 24 SAEs, for about ten minutes on two cores"""


@dataclass(frozen=True)
class ValidityRow:
    """One SAE: what is true of it, and what measures say."""

    series: str
    """grid: the SAEs that are ranked; checkpoint: those of one training"""
    variant: str
    k: int
    tokens: int
    f1: float
    mcc: float
    explained_variance: float
    probing: float
    no_absorption: float
    """NaN where probes tell no class from the activations"""
    main_f1: float
    stability: float
    alive: float


@dataclass(frozen=True)
class ValidityRank:
    """How well one measure ranks."""

    measure: str
    truth: str
    """f1 or mcc: over the SAEs of the grid, Spearman's correlation; tokens: over the checkpoints of
    one training, Kendall's"""
    correlation: float
    low: float
    """ends of the 95 % interval over SAEs; NaN for checkpoints, which are no sample"""
    high: float
    saes: int


@dataclass(frozen=True)
class ValidityResult:
    """The SAEs and the rankings of `run_validity`."""

    rows: tuple[ValidityRow, ...]
    ranks: tuple[ValidityRank, ...]
    written: tuple[Path, ...] = ()

    def table(self) -> str:
        """Format both as text."""
        return "\n\n".join(
            as_text([asdict(row) for row in part]) for part in (self.rows, self.ranks)
        )


def run_validity(
    out: str | Path | None = None,
    *,
    size: str | ValiditySize = "full",
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ValidityResult:
    """Rank planted SAEs by measures and by their truth.

    Every SAE has a twin of another seed, which stability needs. The training whose checkpoints are
    looked at has a constant learning rate, so that a shorter training is the beginning of a longer.

    Args:
        out: folder to write `validity.parquet` and `validity_ranks.parquet` to; None: nothing.
        size: one of `SIZES`, or your own.
        seed: seed of the world, and of all SAEs together with their number.
        device: where to train; None: a CUDA device if there is one.
        progress: show progress bars on stderr.
    """
    chosen = _size(size)
    checks.whole("seed", seed)
    world = nested_world(
        chosen.features, chosen.d, trees=chosen.trees, depth=1, rates=(4e-3, 0.2), seed=seed
    )
    look = _Look(world, chosen, seed)
    trainings = [("grid", _grid(chosen, look.l0, tokens, seed)) for tokens in chosen.tokens]
    trainings += [
        ("checkpoint", [_checkpoint(chosen, look.l0, t, seed)]) for t in chosen.checkpoints
    ]
    rows = []
    for series, configs in tracked(trainings, "validity", unit="trainings", progress=progress):
        saes = [sae.cpu() for sae in train_saes(world, configs, progress=progress, device=device)]
        for place, config in enumerate(configs):
            rows.append(look.row(series, config, *saes[2 * place : 2 * place + 2]))
    ranks = _ranks(rows, seed)
    if out is None:
        return ValidityResult(tuple(rows), ranks)
    files = (Path(out) / "validity.parquet", Path(out) / "validity_ranks.parquet")
    write_rows(files[0], [asdict(row) for row in rows])
    write_rows(files[1], [asdict(rank) for rank in ranks])
    return ValidityResult(tuple(rows), ranks, files)


def _size(size: str | ValiditySize) -> ValiditySize:
    if isinstance(size, ValiditySize):
        for variant in size.variants:
            checks.one_of("size.variants", variant, VARIANTS)
        return size
    if not isinstance(size, str):
        raise TypeError(f"size must be a str or a ValiditySize, got {type(size).__name__}")
    checks.one_of("size", size, tuple(SIZES))
    return SIZES[size]


def _grid(size: ValiditySize, l0: float, tokens: int, seed: int) -> list[TrainConfig]:
    return [
        TrainConfig(
            latents=size.latents,
            k=max(1, round(width * l0)),
            variant=variant,
            seeds=(seed, seed + 1),
            tokens=tokens,
            batch_size=size.batch_size,
            lr=size.lr,
            auxk=AuxK(dead_after=max(size.tokens) // 10),
            name=f"{variant}-{width:g}-{tokens}",
        )
        for variant in size.variants
        for width in size.widths
    ]


def _checkpoint(size: ValiditySize, l0: float, tokens: int, seed: int) -> TrainConfig:
    (config, *_) = _grid(replace(size, widths=(1.0,)), l0, tokens, seed)
    return replace(config, lr_warmup=0.0, lr_decay="none", auxk=None)


class _Look:
    """Rows that no SAE was trained on, and what is planted in them."""

    def __init__(self, world: World, size: ValiditySize, seed: int) -> None:
        self._world, self._size, self._seed = world, size, seed
        self.l0 = float(world.firing_rate.sum())
        self._drawn = world.sample(size.rows, seed=seed + 1)
        self._fires = _firing(self._drawn, world.m)
        generator = generator_of(seed, "validity")
        half = size.rows // 2
        often = torch.minimum(self._fires[:half].sum(0), self._fires[half:].sum(0)) >= 8
        known = often.nonzero()[:, 0]
        order = torch.randperm(len(known), generator=generator)
        self._tasks = known[order[: size.tasks]]
        self._families = _families(world, self._fires)

    def row(self, series: str, config: TrainConfig, sae: SAE, twin: SAE) -> ValidityRow:
        """Measure one SAE."""
        seen = explain(sae, self._world, rows=self._size.rows, seed=self._seed + 1)
        features = Dictionary(sae.W_dec.detach(), firing_rate=seen.firing_rate)
        absorbed = self._absorbed(sae)
        return ValidityRow(
            series=series,
            variant=config.variant,
            k=config.k,
            tokens=config.tokens,
            f1=seen.mean_f1,
            mcc=recovery(features, self._world).mcc,
            explained_variance=seen.explained_variance,
            probing=self._probed(sae),
            no_absorption=1 - absorbed[PRIMARY],
            main_f1=absorbed[MAIN_F1],
            stability=_stability(features, twin),
            alive=float((seen.firing_rate > 0).double().mean()),
        )

    def _probed(self, sae: SAE) -> float:
        """Mean AUROC of the latent that tells a planted label best on the first half of the rows.

        The latent is the one with the largest t statistic, which no scale of activations changes.
        """
        half = len(self._drawn.x) // 2
        with torch.no_grad():
            code = code_of(sae, self._drawn.x)
        labels = self._fires[:, self._tasks]
        first, values, indices = labels[:half].float(), code.values[:half], code.indices[:half]
        number = first.sum(0)
        sides = []
        for members, count in ((first, number), (1 - first, half - number)):
            mean, square = (
                latent_sum(powers, indices, members.contiguous(), sae.m).double() / count
                for powers in (values, values.square())
            )
            sides.append((mean, (square - mean.square()).clamp(min=0) / count))
        (above, noise), (below, other) = sides
        best = ((above - below) / (noise + other + 1e-12).sqrt()).argmax(0)
        areas = []
        for task, latent in enumerate(best.tolist()):
            fired = torch.where(code.indices[half:] == latent, code.values[half:], 0.0).amax(1)
            areas.append(auroc(labels[half:, task].numpy(), fired.numpy()))
        return float(np.mean(areas))

    def _absorbed(self, sae: SAE) -> Mapping[str, float]:
        rows, labels, classes = self._families
        found = absorb_rows(
            self._drawn.x[rows], labels, classes, sae, seed=self._seed, progress=False
        )
        if not found.scores:
            return {PRIMARY: float("nan"), MAIN_F1: float("nan")}
        return {name: found.overall(name).value for name in (PRIMARY, MAIN_F1)}


def _firing(drawn: Drawn, m: int) -> Tensor:
    """[n, m] bool: which true features fire in which row."""
    fires = torch.zeros(len(drawn.x), m, dtype=torch.bool)
    row, place = (drawn.values > 0).nonzero(as_tuple=True)
    fires[row, drawn.indices[row, place]] = True
    return fires


def _families(world: World, fires: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """Rows in which one root of a family fires at most, and which: -1 for none."""
    parent = world.parent if world.parent is not None else torch.full((world.m,), -1)
    roots = torch.unique(parent[parent >= 0])
    of_roots = fires[:, roots]
    rows = (of_roots.sum(1) <= 1).nonzero()[:, 0]
    labels = torch.where(of_roots[rows].any(1), of_roots[rows].int().argmax(1), -1)
    return rows, labels, [f"root {root}" for root in roots.tolist()]


def _stability(features: Dictionary, twin: SAE) -> float:
    """Mean over latents that fire of the cosine to their one-to-one partner in another SAE."""
    alive = features.alive
    if not bool(alive.any()):
        return 0.0
    found = match_features(features, Dictionary(twin.W_dec.detach()), one_to_one=True)
    return float(found.similarity.double()[alive].mean())


Floats = NDArray[np.float64]


def _ranks(rows: Sequence[ValidityRow], seed: int) -> tuple[ValidityRank, ...]:
    grid, points = ([row for row in rows if row.series == name] for name in ("grid", "checkpoint"))
    found = []
    for measure in MEASURES:
        for truth in TRUTHS:
            pairs = np.array([[getattr(row, measure), getattr(row, truth)] for row in grid])
            pairs = pairs[~np.isnan(pairs).any(1)]
            value, low, high = _spearman_interval(pairs, seed)
            found.append(ValidityRank(measure, truth, value, low, high, len(pairs)))
        values = np.array([[getattr(row, measure), row.tokens] for row in points], dtype=np.float64)
        values = values[~np.isnan(values).any(1)]
        nothing = float("nan")
        found.append(
            ValidityRank(measure, "tokens", kendall(values), nothing, nothing, len(values))
        )
    return tuple(found)


def _spearman_interval(pairs: Floats, seed: int) -> tuple[float, float, float]:
    """Spearman's correlation of pairs [n, 2], and the ends of its bootstrap interval."""
    generator = np.random.default_rng(seed)
    if not len(pairs):
        return _UNKNOWN
    chosen = generator.integers(len(pairs), size=(_DRAWS, len(pairs)))
    drawn = np.array([spearman(pairs[its]) for its in chosen])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return _UNKNOWN
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return spearman(pairs), float(low), float(high)


def spearman(pairs: Floats) -> float:
    """Return Spearman's rank correlation of pairs [n, 2]; NaN where one side is constant."""
    ranks = np.stack([_ranked(side) for side in pairs.T])
    ranks -= ranks.mean(1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(1).prod())
    return float(ranks.prod(0).sum() / scale) if scale > 0 else float("nan")


def _ranked(values: Floats) -> Floats:
    """Ranks [n] from 0; equal values have the mean of theirs."""
    below = (values[None] < values[:, None]).sum(1)
    same = (values[None] == values[:, None]).sum(1)
    ranks: Floats = below + (same - 1) / 2
    return ranks


def kendall(pairs: Floats) -> float:
    """Return Kendall's tau-b of pairs [n, 2]; NaN where one side is constant."""
    signs = [np.sign(side[:, None] - side[None]) for side in pairs.T]
    scale = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float((signs[0] * signs[1]).sum() / scale) if scale > 0 else float("nan")
