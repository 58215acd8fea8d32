"""Rivals and baselines of trained SAEs, built as SAEs so that the same code evaluates all."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.one_pass import OnePass
from saefast.activations.protocol import ActivationSource
from saefast.linalg import one_thread
from saefast.nulls.permutations import generator_of
from saefast.ops.gather_dots import gather_dots
from saefast.sae import K_PER_ROW, SAE, as_saes, code_of
from saefast.train.config import TrainConfig
from saefast.train.initial import ROWS, Sample, begin, folded, scales_of
from saefast.train.train import train_saes
from saefast.types import brief

UNTRAINED = ("untrained", "residual", "pca")
"""Conditions of `rival_conditions` unless others are named"""
COORDINATES = ("residual", "pca")
"""Conditions whose latents are active on every row"""
PERMUTED_DECODER = "permuted_decoder"
"""Condition with the encoders of the trained SAEs, a test of measures rather than a rival"""
DIFFMEAN = "diffmean"
"""Name of directions that are differences of mean activations, supervised rivals of latents"""
MDAS = "mdas"
"""Name of trained subspaces (multi-task distributed alignment search), a supervised ceiling"""
BASELINES = ("frozen_decoder", "soft_frozen")
"""Conditions of `train_baselines` unless others are named"""

_FAR = 100.0
"""Distance of the origin of coordinates from the mean activation, in standard deviations"""
_TETHER = 0.8
"""Minimum cosine of a soft-frozen decoder row to its first direction, as in arXiv:2602.14111"""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Named SAEs to evaluate beside the trained ones."""

    name: str
    """name of the condition in scores"""
    saes: tuple[SAE, ...]
    """SAEs of the condition"""

    __repr__ = brief


def rival_conditions(
    saes: SAE | Sequence[SAE],
    rows: Tensor,
    names: Sequence[str] = UNTRAINED,
    *,
    seed: int = 0,
) -> list[Condition]:
    """Build conditions that need no training.

    - untrained: for each SAE one of the same shape and variant with random directions. Variants
      other than TopK get a common threshold at which about as many latents are active per row.
    - permuted_decoder: each SAE with the rows of its decoder shuffled. Scores that depend on the
      encoder alone must not change; scores that need the decoder must fall to their floor.
    - residual: the coordinates of the activation, each a latent that is always active.
    - pca: its coordinates along principal axes, largest variance first.

    Args:
        saes: the trained SAEs, of one width.
        rows: [n, d] activations to calibrate thresholds, means and axes on; must not be the
            activations of the evaluation.
        names: conditions to build.
        seed: seed of random directions and permutations.

    Returns:
        The conditions in the order of `names`; residual and pca hold one SAE each, the others one
        for each trained SAE.
    """
    checks.floating("rows", rows, "[n, d]")
    trained = as_saes(saes, rows.shape[-1])
    for name in names:
        checks.one_of("names", name, tuple(_BUILDERS))
    return [Condition(name=name, saes=_BUILDERS[name](trained, rows, seed)) for name in names]


def train_baselines(
    activations: ActivationSource,
    config: TrainConfig,
    names: Sequence[str] = BASELINES,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[Condition]:
    """Train the baselines of arXiv:2602.14111: SAEs whose directions are frozen or nearly so.

    - frozen_decoder: decoder rows stay random, with the covariance of the activations.
    - soft_frozen: decoder rows keep a cosine of 0.8 to random directions.
    - frozen_encoder: encoder rows stay random.

    All are trained on one pass.

    Args:
        activations: activations [n, d] that the SAEs were trained on.
        config: settings of their training; the baselines use the same seeds.
        names: baselines to train.
        out: folder for the training; None: nothing is written.
        resume: continue a training in `out`.
        progress: show a progress bar on stderr.

    Returns:
        The conditions in the order of `names`, with one SAE for each seed.
    """
    for name in names:
        checks.one_of("names", name, tuple(_BASELINES))
    if not names:
        return []
    configs = [replace(_BASELINES[name](config), name=name.replace("_", "-")) for name in names]
    first = next(iter(OnePass(activations, batch_size=ROWS, progress=False)))
    starts = [_start(each, seed, first.x.float()) for each in configs for seed in each.seeds]
    trained = train_saes(
        activations, configs, initial=starts, out=out, resume=resume, progress=progress
    )
    each = len(config.seeds)
    return [
        Condition(name=name, saes=tuple(trained[place * each : (place + 1) * each]))
        for place, name in enumerate(names)
    ]


@torch.no_grad()
def _start(config: TrainConfig, seed: int, rows: Tensor) -> SAE:
    """Build the initial SAE of a training; with a frozen decoder, scale its codes to fit the rows.

    Directions with the covariance of the activations are nearly parallel where few directions hold
    most of the variance. All active latents then reconstruct the same part of a row, many times
    too large, and a short training would end before the codes have shrunk.

    Returns:
        The initial SAE.
    """
    sample = Sample(rows, None)
    scales = scales_of(sample, config.activation_scaling)
    sae = folded(begin(config, seed, sample, scales), scales)
    if config.rules.frozen != "decoder":
        return sae
    reconstructed = (sae(rows) - sae.b_dec).double()
    along = float((reconstructed * (rows - sae.b_dec)).sum() / reconstructed.square().sum())
    if along > 0:
        for name in ("W_enc", "b_enc"):
            getattr(sae, name).mul_(along)
    return sae


def _frozen(
    config: TrainConfig, *, frozen: str | None = None, tether: float | None = None
) -> TrainConfig:
    rules = replace(config.rules, unit_norm=True, penalties=(), frozen=frozen, tether=tether)
    return replace(config, rules=rules)


_BASELINES: Mapping[str, Callable[[TrainConfig], TrainConfig]] = {
    "frozen_decoder": lambda config: replace(_frozen(config, frozen="decoder"), directions="cov"),
    "soft_frozen": lambda config: _frozen(config, tether=_TETHER),
    "frozen_encoder": lambda config: _frozen(config, frozen="encoder"),
}


@torch.no_grad()
def _untrained(saes: Sequence[SAE], rows: Tensor, seed: int) -> tuple[SAE, ...]:
    return tuple(_redrawn(sae, rows, seed, place) for place, sae in enumerate(saes))


def _redrawn(sae: SAE, rows: Tensor, seed: int, place: int) -> SAE:
    new = SAE(
        sae.d,
        sae.m,
        variant=sae.variant,
        k=sae.k,
        seed=int(torch.randint(2**31, (), generator=generator_of(seed, "untrained", place))),
        d_out=sae.d_out if sae.transcodes else None,
        centred=sae.centred,
        skip=sae.skip,
        normalise=sae.normalise,
        by_norm=sae.by_norm,
        dtype=sae.W_enc.dtype,
        device=sae.W_enc.device,
    )
    new.b_dec.copy_(sae.b_dec)
    if sae.skip:
        new.W_skip.copy_(sae.W_skip)
    if sae.variant not in K_PER_ROW:
        _set_threshold(new, rows, _active(sae, rows))
    return new


def _active(sae: SAE, rows: Tensor) -> float:
    """Return the mean number of active latents per row."""
    return float((code_of(sae, rows).values != 0).sum()) / len(rows)


def _set_threshold(sae: SAE, rows: Tensor, active: float) -> None:
    """Give all latents one threshold at which about `active` of them are active per row."""
    inputs = sae.inputs(rows.to(sae.W_enc))
    # Only a sample of the pairs of rows and latents: all pairs would be a matrix [n, m].
    generator = generator_of(0, "threshold")
    width = min(sae.m, 4096)
    chosen = torch.stack(
        [torch.randint(sae.m, (width,), generator=generator) for _ in range(len(rows))]
    )
    pre = gather_dots(inputs, sae.W_enc, chosen.to(inputs.device)).flatten().cpu()
    place = min(max(round(len(pre) * (1 - active / sae.m)), 0), len(pre) - 1)
    threshold = pre.sort().values[place].clamp(min=0)
    if sae.variant in ("batchtopk", "matryoshka"):
        sae.batch_threshold.copy_(threshold)
    elif sae.variant == "jumprelu":
        sae.jump_threshold.fill_(float(threshold))
    else:
        sae.b_enc.fill_(-float(threshold))
        if sae.variant == "gated":
            sae.b_mag.fill_(-float(threshold))


@torch.no_grad()
def _permuted_decoder(saes: Sequence[SAE], rows: Tensor, seed: int) -> tuple[SAE, ...]:
    permuted = []
    for place, sae in enumerate(saes):
        new = copy.deepcopy(sae)
        order = torch.randperm(sae.m, generator=generator_of(seed, "permuted_decoder", place))
        new.W_dec.copy_(sae.W_dec[order.to(sae.W_dec.device)])
        permuted.append(new)
    return tuple(permuted)


def _residual(saes: Sequence[SAE], rows: Tensor, seed: int) -> tuple[SAE, ...]:
    return (coordinates(saes[0], rows, torch.eye(saes[0].d, dtype=torch.float64)),)


def _pca(saes: Sequence[SAE], rows: Tensor, seed: int) -> tuple[SAE, ...]:
    with one_thread():
        centred = rows.double().cpu() - rows.double().cpu().mean(0)
        _, axes = torch.linalg.eigh(centred.T @ centred)
    return (coordinates(saes[0], rows, signed(axes.flip(1).T)),)


def signed(axes: Tensor) -> Tensor:
    """Return axes [n, d], whose signs are arbitrary, with the largest entry of each positive."""
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * largest.sign()


@torch.no_grad()
def coordinates(like: SAE, rows: Tensor, axes: Tensor) -> SAE:
    """Build an SAE whose latents are the coordinates along orthonormal axes, all always active.

    With the origin at the mean, ReLU would set negative coordinates to zero. The origin is so far
    below the mean that it sets none.

    Args:
        like: SAE with the width, dtype and device of the result.
        rows: [n, d] activations whose spread sets the distance of the origin.
        axes: [d, d] float64 orthonormal rows.

    Returns:
        An SAE with d latents.
    """
    sae = SAE(like.d, like.d, variant="relu", k=like.d, dtype=like.W_enc.dtype)
    data = rows.double().cpu()
    spread = float((data - data.mean(0)).square().mean().sqrt())
    origin = data.mean(0) - _FAR * spread * axes.sum(0)
    sae.W_enc.copy_(axes)
    sae.W_dec.copy_(axes)
    sae.b_dec.copy_(origin)
    return sae.to(like.W_enc.device)


_BUILDERS: Mapping[str, Callable[[Sequence[SAE], Tensor, int], tuple[SAE, ...]]] = {
    "untrained": _untrained,
    PERMUTED_DECODER: _permuted_decoder,
    "residual": _residual,
    "pca": _pca,
}

TRAINABLE = tuple(_BASELINES)
"""Names of all conditions of `train_baselines`"""
CONDITIONS = (*_BUILDERS, *TRAINABLE)
"""Names of all conditions of `rival_conditions` and `train_baselines`"""
