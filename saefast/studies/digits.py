"""Whether weight regularisation makes features come back: SAEs on images of digits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from saefast.config import TrainConfig
from saefast.match import match_features
from saefast.nulls import BestOfRandom
from saefast.ops import checks
from saefast.ops.latent_sum import column_sum
from saefast.rules import NORMS, SIDES, Penalty, Rules
from saefast.sae import SAE
from saefast.studies.idx import read_idx_images
from saefast.studies.table import as_text, write_parquet
from saefast.train import train_saes
from saefast.types import Dictionary

PAIRED = 0.7
"""absolute cosine above which features of two seeds are a pair"""
EXPANSION = 2
"""latents per pixel"""
SPARSITY = 0.1
"""weight of the mean activation beside the squared error, averaged over pixels"""
BATCH_SIZE, LR = 512, 1e-3


class WeightPenalty(NamedTuple):
    """A norm of the encoder's and the decoder's weights, times a number, added to the loss."""

    name: str
    norm: str
    """one of `saefast.rules.NORMS`"""
    weight: float
    """beside the squared error averaged over pixels"""


PENALTIES = (
    WeightPenalty("none", "fro", 0.0),
    WeightPenalty("l2", "fro", 1e-5),
    WeightPenalty("l1", "mean_abs", 1e-3),
)
"""Those of Jedryszek and Crook 2026 on MNIST"""


@dataclass(frozen=True)
class DigitsRow:
    """One cell of the grid; means over seeds, or over ordered pairs of them, of latents alive."""

    tied: bool
    """the encoder starts as the decoder"""
    unit_norm: bool
    """decoder rows are kept at norm one"""
    penalty: str
    weight: float
    explained: float
    """of the images trained on"""
    l0: float
    alive: float
    """latents that fire on some image"""
    mmcs: float
    """mean largest absolute cosine to another seed's latents, of decoders and encoders"""
    mmcs_null: float
    """that of as many random directions"""
    paired: float
    """share whose decoder is that close to another seed's"""
    shared: float
    """share with one and the same one-to-one partner by decoder and encoder, both close"""
    always: float
    """share that is shared with every other seed"""
    sometimes: float
    """with some"""
    never: float


@dataclass(frozen=True)
class DigitsResult:
    """The rows of `run_digits`."""

    rows: tuple[DigitsRow, ...]
    written: tuple[Path, ...] = ()

    def table(self) -> str:
        """For people."""
        return as_text([asdict(row) for row in self.rows])


def run_digits(
    out: str | Path | None = None,
    *,
    images: str | Path | None = None,
    penalties: Sequence[WeightPenalty] = PENALTIES,
    seeds: int = 3,
    epochs: int | None = None,
    progress: bool = True,
) -> DigitsResult:
    """Train ReLU SAEs with and without tied starts, unit norms and penalties; see what comes back.

    Args:
        out: folder to write `digits.parquet` to. Without it nothing is written.
        images: an IDX file of images, packed or not, or a folder with MNIST's. None takes the 1797
            digits of 8 x 8 pixels that scikit-learn brings.
        penalties: which are tried.
        seeds: how many SAEs for each cell of the grid.
        epochs: how often every image is seen; None: 300 times scikit-learn's, others 100 times.
        progress: show progress bars on stderr.

    Returns:
        A row for each start, norm and penalty. SAEs this dense repeat their bits on the same number
        of threads only.
    """
    checks.whole("seeds", seeds)
    checks.at_least("seeds", seeds, 2)
    for penalty in penalties:
        checks.one_of("penalties", penalty.norm, NORMS)
    rows = bundled_digits() if images is None else read_idx_images(images)
    if epochs is None:
        epochs = 300 if images is None else 100
    checks.whole("epochs", epochs)
    checks.at_least("epochs", epochs, 1)
    grid = list(product((True, False), (True, False), penalties))
    configs = [_config(rows, *cell, seeds=seeds, epochs=epochs) for cell in grid]
    saes = train_saes(rows, configs, progress=progress, device="cpu")
    found = []
    cells = tqdm(grid, desc="matching", unit="cell", disable=not progress)
    for number, (tied, unit_norm, penalty) in enumerate(cells):
        group = saes[number * seeds : (number + 1) * seeds]
        found.append(_row(group, rows, tied, unit_norm, penalty))
    if out is None:
        return DigitsResult(tuple(found))
    file = write_parquet([asdict(row) for row in found], Path(out) / "digits.parquet")
    return DigitsResult(tuple(found), (file,))


def bundled_digits() -> Tensor:
    """[1797, 64] float32 from 0 to 1."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "the bundled digits are scikit-learn's: pip install scikit-learn, or pass images, a "
            "folder with MNIST"
        ) from error
    return torch.from_numpy(load_digits().data / 16).float()


def _config(
    rows: Tensor, tied: bool, unit_norm: bool, penalty: WeightPenalty, seeds: int, epochs: int
) -> TrainConfig:
    pixels = rows.shape[1]
    latents = EXPANSION * pixels
    norms = (
        ()
        if penalty.weight == 0
        else tuple(
            # Our squared error is a sum over pixels.
            Penalty(side, penalty.norm, pixels * penalty.weight)
            for side in SIDES
        )
    )
    return TrainConfig(
        latents=latents,
        k=1,
        variant="relu",
        seeds=tuple(range(seeds)),
        tokens=epochs * len(rows),
        batch_size=min(BATCH_SIZE, len(rows)),
        lr=LR,
        lr_warmup=0.0,
        lr_decay="none",
        rules=Rules(unit_norm=unit_norm, remove_parallel=False, penalties=norms),
        auxk=None,
        sparsity=SPARSITY * pixels / latents,
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
    # Every seed is the reference once: what is counted are its own latents, in all others.
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
    """What an SAE makes of all images."""
    errors, fired = 0.0, torch.zeros(sae.m, dtype=torch.int64)
    for x in torch.split(images, 4096):
        code = sae.encode(x)
        errors += float(column_sum((sae.decode(code) - x).double().square()).sum())
        fired += torch.bincount(code.indices[code.values > 0], minlength=sae.m)
    mean = column_sum(images.double()) / len(images)
    total = float(column_sum((images.double() - mean).square()).sum())
    return _Seen(1 - errors / total, fired.double() / len(images))


class _Compared(NamedTuple):
    """The features of one seed among those of another."""

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
