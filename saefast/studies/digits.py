"""Effect of weight regularisation on the reproducibility of features: SAEs on images of digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary
from saefast.match.features import match_features
from saefast.nulls.cosines import BestOfRandom
from saefast.ops.latent_sum import column_sum
from saefast.progress import tracked
from saefast.sae import SAE
from saefast.studies.idx import read_idx_images
from saefast.studies.result import StudyResult
from saefast.train.config import TrainConfig
from saefast.train.settings import NORMS, SIDES, Penalty, Rules
from saefast.train.train import train_saes

PAIRED = 0.7
"""Absolute cosine above which features of two seeds are a pair."""
EXPANSION = 2
"""Number of latents per pixel."""
BATCH_SIZE, LR = 512, 1e-3


class WeightPenalty(NamedTuple):
    """Penalty on a norm of the encoder's and the decoder's weights."""

    name: str
    norm: str
    """name of the norm, one of `saefast.train.settings.NORMS`"""
    weight: float
    """factor of the norm, relative to the squared error averaged over pixels"""


@dataclass(frozen=True)
class DigitsSetting:
    """Settings of a grid of trainings: each penalty, tied start or not, unit norms or not."""

    penalties: tuple[WeightPenalty, ...]
    sparsity: float
    """factor of the mean activation, relative to the squared error averaged over pixels"""
    epochs: int
    """number of times that every image is seen"""


BUNDLED = DigitsSetting(
    (
        WeightPenalty("none", "fro", 0.0),
        WeightPenalty("l2", "fro", 1e-3),
        WeightPenalty("l1", "mean_abs", 0.1),
    ),
    sparsity=0.4,
    epochs=400,
)
"""Setting for the 1797 small digits.

With the numbers of MNIST, half of their latents fire on every image, stay near their initial
directions and have no pairs.
"""
MNIST = DigitsSetting(
    (
        WeightPenalty("none", "fro", 0.0),
        WeightPenalty("l2", "fro", 1e-5),
        WeightPenalty("l1", "mean_abs", 1e-3),
    ),
    sparsity=0.1,
    epochs=100,
)
"""Setting of Jedryszek and Crook 2026."""


@dataclass(frozen=True)
class DigitsRow:
    """One cell of the grid: means over seeds, or over ordered pairs of seeds, for latents alive."""

    tied: bool
    """the encoder starts as the decoder"""
    unit_norm: bool
    """decoder rows are kept at norm one"""
    penalty: str
    weight: float
    explained: float
    """variance explained on the images of the training"""
    l0: float
    alive: float
    """number of latents that fire on some image"""
    mmcs: float
    """mean largest absolute cosine to another seed's latents, over decoders and encoders"""
    mmcs_null: float
    """the same for as many random directions"""
    paired: float
    """share of latents whose decoder row has an absolute cosine above `PAIRED` to another seed's"""
    shared: float
    """share of latents with the same one-to-one partner by decoder and encoder, above `PAIRED`"""
    always: float
    """share of latents that are shared with every other seed"""
    sometimes: float
    """share of latents that are shared with some other seeds"""
    never: float


def run_digits(
    out: str | Path | None = None,
    *,
    images: str | Path | None = None,
    setting: DigitsSetting | None = None,
    seeds: int = 3,
    progress: bool = True,
) -> StudyResult[DigitsRow]:
    """Train ReLU SAEs with and without tied starts, unit norms and penalties, and compare seeds.

    Args:
        out: folder to write `digits.parquet` to; None writes nothing.
        images: an IDX file of images, possibly gzipped, or a folder with MNIST's; None: the 1797
            digits of 8 x 8 pixels from scikit-learn.
        setting: penalties, sparsity and epochs; None: `BUNDLED` for scikit-learn's digits, else
            `MNIST`.
        seeds: number of SAEs for each cell of the grid.
        progress: show progress bars on stderr.

    Returns:
        A row for each start, norm and penalty. SAEs as dense as these have the same bits only for
        the same number of threads.
    """
    checks.whole("seeds", seeds, 2)
    if setting is None:
        setting = BUNDLED if images is None else MNIST
    _check(setting)
    rows = bundled_digits() if images is None else read_idx_images(images)
    grid = list(product((True, False), (True, False), setting.penalties))
    configs = [_config(rows, *cell, setting=setting, seeds=seeds) for cell in grid]
    saes = train_saes(rows, configs, progress=progress, device="cpu")
    found = []
    cells = tracked(grid, "matching", unit="cells", progress=progress)
    for number, (tied, unit_norm, penalty) in enumerate(cells):
        group = saes[number * seeds : (number + 1) * seeds]
        found.append(_row(group, rows, tied, unit_norm, penalty))
    return StudyResult.of(found, out, "digits.parquet")


def _check(setting: DigitsSetting) -> None:
    if not isinstance(setting, DigitsSetting):
        raise TypeError(f"setting must be a DigitsSetting, got {type(setting).__name__}")
    checks.whole("setting.epochs", setting.epochs, 1)
    checks.at_least("setting.sparsity", setting.sparsity, 0)
    for penalty in setting.penalties:
        checks.one_of("setting.penalties", penalty.norm, NORMS)


def bundled_digits() -> Tensor:
    """Return the digits of scikit-learn, [1797, 64] float32 from 0 to 1."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "the default digits are part of scikit-learn, which is not installed; run pip install "
            "scikit-learn, or give images, a folder with MNIST"
        ) from error
    return torch.from_numpy(load_digits().data / 16).float()


def _config(
    rows: Tensor,
    tied: bool,
    unit_norm: bool,
    penalty: WeightPenalty,
    setting: DigitsSetting,
    seeds: int,
) -> TrainConfig:
    pixels = rows.shape[1]
    latents = EXPANSION * pixels
    norms = (
        ()
        if penalty.weight == 0
        else tuple(
            # The squared error of saefast is a sum over pixels.
            Penalty(side, penalty.norm, pixels * penalty.weight)
            for side in SIDES
        )
    )
    return TrainConfig(
        latents=latents,
        k=1,
        variant="relu",
        seeds=tuple(range(seeds)),
        tokens=setting.epochs * len(rows),
        batch_size=min(BATCH_SIZE, len(rows)),
        lr=LR,
        lr_warmup=0.0,
        lr_decay="none",
        rules=Rules(unit_norm=unit_norm, remove_parallel=False, penalties=norms),
        auxk=None,
        sparsity=setting.sparsity * pixels / latents,
        sparsity_warmup=0.0,
        tied=tied,
        b_dec="geometric_median",
        activation_scaling="none",
        name=f"{'tied' if tied else 'untied'}-{'unit' if unit_norm else 'free'}-{penalty.name}",
    )


def _row(
    saes: Sequence[SAE], images: Tensor, tied: bool, unit_norm: bool, penalty: WeightPenalty
) -> DigitsRow:
    seen = [_seen(sae, images) for sae in saes]
    dictionaries = [
        Dictionary(sae.W_dec.detach(), sae.W_enc.detach(), firing_rate=each.firing_rate)
        for sae, each in zip(saes, seen, strict=True)
    ]
    alive = [dictionary.alive for dictionary in dictionaries]
    pairs = {
        (s, t): _compared(dictionaries[s], dictionaries[t])
        for s, t in permutations(range(len(saes)), 2)
    }
    # Every seed is the reference once: its own latents are counted in all others.
    shares = []
    for s, mine in enumerate(alive):
        hits = torch.stack([pairs[s, t].shared for t in range(len(saes)) if t != s]).double()
        shares.append(hits.mean(0)[mine])
    return DigitsRow(
        tied=tied,
        unit_norm=unit_norm,
        penalty=penalty.name,
        weight=penalty.weight,
        explained=_mean([each.explained for each in seen]),
        l0=_mean([float(each.firing_rate.sum()) for each in seen]),
        alive=_mean([int(mine.sum()) for mine in alive]),
        mmcs=_mean([pair.mmcs for pair in pairs.values()]),
        mmcs_null=_mean(
            [BestOfRandom(int(each.sum()), images.shape[1], absolute=True).mean() for each in alive]
        ),
        paired=_mean([pair.paired for pair in pairs.values()]),
        shared=_mean([float(share.mean()) for share in shares]),
        always=_mean([float((share == 1).double().mean()) for share in shares]),
        sometimes=_mean([float(((share > 0) & (share < 1)).double().mean()) for share in shares]),
        never=_mean([float((share == 0).double().mean()) for share in shares]),
    )


class _Seen(NamedTuple):
    explained: float
    firing_rate: Tensor


@torch.no_grad()
def _seen(sae: SAE, images: Tensor) -> _Seen:
    """Return the explained variance and firing rates of an SAE over all images."""
    errors, fired = 0.0, torch.zeros(sae.m, dtype=torch.int64)
    for x in torch.split(images, 4096):
        code = sae.encode(x)
        errors += float(column_sum((sae.decode(code) - x).double().square()).sum())
        fired += torch.bincount(code.indices[code.values > 0], minlength=sae.m)
    mean = column_sum(images.double()) / len(images)
    total = float(column_sum((images.double() - mean).square()).sum())
    return _Seen(1 - errors / total, fired.double() / len(images))


class _Compared(NamedTuple):
    """Comparison of one seed's latents with another's."""

    mmcs: float
    paired: float
    shared: Tensor
    """[m] bool"""


def _compared(a: Dictionary, b: Dictionary) -> _Compared:
    largest = {
        side: match_features(a, b, side=side, absolute=True).similarity[a.alive].double()
        for side in ("decoder", "encoder")
    }
    partners = [
        match_features(a, b, side=side, absolute=True, one_to_one=True)
        for side in ("decoder", "encoder")
    ]
    same = partners[0].partner == partners[1].partner
    close = torch.stack([found.similarity > PAIRED for found in partners]).all(0)
    return _Compared(
        mmcs=_mean([float(values.mean()) for values in largest.values()]),
        paired=float((largest["decoder"] > PAIRED).double().mean()),
        shared=same & close & a.alive,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
