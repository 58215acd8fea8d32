"""Validity of measures: whether they rank SAEs by planted truth, and grow during training.

This is the second lens of the audit arXiv:2605.18229, on worlds with known features: SAEs of
different k, variant and length of training are ranked by each measure that needs no truth, and by
the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary
from saefast.evaluation.absorption.classes import absorbed_classes, split_words
from saefast.evaluation.intervals import auroc
from saefast.evaluation.rank_correlation import kendall, spearman_interval
from saefast.match.features import match_features
from saefast.nulls.permutations import generator_of
from saefast.ops.latent_sum import latent_sum
from saefast.progress import tracked
from saefast.sae import SAE, code_of
from saefast.studies.result import StudyResult
from saefast.studies.validity_sizes import ValiditySize, chosen_size
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
"""Measures that rank SAEs.

They are: explained variance; AUROC of the best latent for a planted label, chosen on other rows; 1
- absorption fraction of roots of families; F1 of their main latents; mean cosine of latents with
their partners in an SAE of another seed; share of latents that fire.
"""
TRUTHS = ("f1", "mcc")
"""Truths to compare rankings with.

f1: how well latents indicate that their true feature fires; mcc: mean cosine of one-to-one pairs of
latents and true features.
"""


@dataclass(frozen=True)
class ValidityRow:
    """Truths and measures of one SAE."""

    series: str
    """"grid" for the ranked SAEs, "checkpoint" for those of one training"""
    variant: str
    k: int
    tokens: int
    f1: float
    mcc: float
    explained_variance: float
    probing: float
    no_absorption: float
    """NaN if probes detect no class from the activations"""
    main_f1: float
    stability: float
    alive: float


@dataclass(frozen=True)
class ValidityRank:
    """Quality of the ranking by one measure."""

    measure: str
    truth: str
    """"f1" or "mcc": Spearman's correlation over the SAEs of the grid

    For "tokens" it is Kendall's, over the checkpoints of one training.
    """
    correlation: float
    low: float
    """ends of the 95 % interval over SAEs; NaN for checkpoints, which are no sample"""
    high: float
    saes: int


@dataclass(frozen=True, kw_only=True)
class ValidityResult(StudyResult[ValidityRow]):
    """SAEs of `run_validity`, and how well measures rank them."""

    ranks: StudyResult[ValidityRank]

    def as_text(self) -> str:
        """Format the SAEs, then the ranks, as `StudyResult.as_text` does."""
        return f"{super().as_text()}\n\n{self.ranks.as_text()}"


def run_validity(
    out: str | Path | None = None,
    *,
    size: str | ValiditySize = "full",
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ValidityResult:
    """Rank planted SAEs by measures and by their truth.

    Every SAE has a twin of another seed, which the measure "stability" needs. The training with
    checkpoints has a constant learning rate, so that a shorter training is the beginning of a
    longer one.

    Args:
        out: folder to write `validity.parquet` and `validity_ranks.parquet` to; None writes
            nothing.
        size: name in `SIZES`, or your own size.
        seed: seed of the world; SAEs have the seeds `seed` and `seed` + 1.
        device: device of the training; None: a CUDA device if there is one.
        progress: show progress bars on stderr.

    Returns:
        SAEs with their truths and measures, and how well each measure ranks them.
    """
    chosen = chosen_size(size)
    checks.whole("seed", seed)
    world = nested_world(
        chosen.features, chosen.d, trees=chosen.trees, depth=1, rates=(4e-3, 0.2), seed=seed
    )
    planted = PlantedRows(world, chosen, seed)
    trainings = [("grid", _grid(chosen, planted.l0, tokens, seed)) for tokens in chosen.tokens]
    trainings += [
        ("checkpoint", [_checkpoint(chosen, planted.l0, t, seed)]) for t in chosen.checkpoints
    ]
    rows = []
    for series, configs in tracked(trainings, "validity", unit="trainings", progress=progress):
        saes = [sae.cpu() for sae in train_saes(world, configs, progress=progress, device=device)]
        for place, config in enumerate(configs):
            rows.append(planted.row(series, config, *saes[2 * place : 2 * place + 2]))
    table = StudyResult.of(rows, out, "validity.parquet")
    ranks = StudyResult.of(_ranks(rows, seed), out, "validity_ranks.parquet")
    return ValidityResult(rows=table.rows, ranks=ranks, written=(*table.written, *ranks.written))


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


class PlantedRows:
    """Rows on which no SAE was trained, with their planted features."""

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
        rows, labels, classes = _families(world, self._fires)
        self._words = split_words(
            self._drawn.x[rows], labels, classes, torch.arange(len(rows)), seed
        )

    def row(self, series: str, config: TrainConfig, sae: SAE, twin: SAE) -> ValidityRow:
        """Measure one SAE."""
        seen = explain(sae, self._world, rows=self._size.rows, seed=self._seed + 1)
        features = Dictionary(sae.W_dec.detach(), firing_rate=seen.firing_rate)
        absorbed, main_f1 = self._absorbed(sae)
        return ValidityRow(
            series=series,
            variant=config.variant,
            k=config.k,
            tokens=config.tokens,
            f1=seen.mean_f1,
            mcc=recovery(features, self._world).mcc,
            explained_variance=seen.explained_variance,
            probing=self._probed(sae),
            no_absorption=1 - absorbed,
            main_f1=main_f1,
            stability=_stability(features, twin),
            alive=float((seen.firing_rate > 0).double().mean()),
        )

    def _probed(self, sae: SAE) -> float:
        """Return the mean AUROC over planted labels of the best latent of each.

        It is the one with the largest t statistic on the first half of the rows, which the scale of
        activations does not affect; AUROC is measured on the second half.
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
            fired = torch.where(code.indices[half:] == latent, code.values[half:], 0.0).sum(1)
            areas.append(auroc(labels[half:, task].numpy(), fired.numpy()))
        return float(np.mean(areas))

    def _absorbed(self, sae: SAE) -> tuple[float, float]:
        """Return the absorption fraction of the roots of families, and F1 of their main latents."""
        if not self._words.words:
            return float("nan"), float("nan")
        with torch.no_grad():
            code = code_of(sae, self._words.rows)
        found = absorbed_classes(sae, code, self._words)
        return float(found.fraction.mean()), float(found.main_f1.mean())


def _firing(drawn: Drawn, m: int) -> Tensor:
    """Return which true features fire in which row, [n, m] bool."""
    fires = torch.zeros(len(drawn.x), m, dtype=torch.bool)
    row, place = (drawn.values > 0).nonzero(as_tuple=True)
    fires[row, drawn.indices[row, place]] = True
    return fires


def _families(world: World, fires: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return rows with at most one firing root, the indices of these roots, and their count.

    The number is -1 where no root fires.
    """
    parent = world.parent if world.parent is not None else torch.full((world.m,), -1)
    roots = torch.unique(parent[parent >= 0])
    of_roots = fires[:, roots]
    rows = (of_roots.sum(1) <= 1).nonzero()[:, 0]
    labels = torch.where(of_roots[rows].any(1), of_roots[rows].int().argmax(1), -1)
    return rows, labels, len(roots)


def _stability(features: Dictionary, twin: SAE) -> float:
    """Return the mean cosine of firing latents with their one-to-one partners in another SAE."""
    alive = features.alive
    if not bool(alive.any()):
        return 0.0
    found = match_features(features, Dictionary(twin.W_dec.detach()), one_to_one=True)
    return float(found.similarity.double()[alive].mean())


def _ranks(rows: Sequence[ValidityRow], seed: int) -> tuple[ValidityRank, ...]:
    grid, points = ([row for row in rows if row.series == name] for name in ("grid", "checkpoint"))
    found = []
    for measure in MEASURES:
        for truth in TRUTHS:
            pairs = np.array([[getattr(row, measure), getattr(row, truth)] for row in grid])
            pairs = pairs[~np.isnan(pairs).any(1)]
            value, low, high = spearman_interval(*pairs.T, seed=seed)
            found.append(ValidityRank(measure, truth, value, low, high, len(pairs)))
        values = np.array([[getattr(row, measure), row.tokens] for row in points], dtype=np.float64)
        values = values[~np.isnan(values).any(1)]
        nothing, value = float("nan"), float(kendall(*values.T))
        found.append(ValidityRank(measure, "tokens", value, nothing, nothing, len(values)))
    return tuple(found)
