"""Initialise SAEs from their seeds and from the first rows of the activations."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saefast import reference
from saefast.activations.covariance import activation_covariance
from saefast.linalg import covariance_root, one_thread
from saefast.ops.latent_sum import column_sum, vector_sum
from saefast.sae import FIRST_THRESHOLD, SAE
from saefast.train.config import TrainConfig
from saefast.train.ranks.share import Share, shared

ROWS = 8192
"""Maximum number of rows of the stream that the initialisation uses."""

_BLOCK = 1024
"""Directions drawn at once. Blocks of a multiple of 16 numbers are those of a single draw."""


_VALUES = ("b_enc", "b_mag", "batch_threshold", "jump_threshold")
"""Weights in the units of the latents' values."""


class Sample(NamedTuple):
    """The first rows of the stream, unscaled."""

    x: Tensor
    """[n, d] activations"""
    target: Tensor | None
    """[n, d_out] rows to reconstruct; None: x"""

    @property
    def width(self) -> int:
        """Width of the rows to reconstruct."""
        return (self.x if self.target is None else self.target).shape[1]


class Scales(NamedTuple):
    """Factors by which inputs and targets are multiplied for training."""

    x: float
    target: float


def scales_of(sample: Sample, scaling: str) -> Scales:
    """Return factors that give rows a mean norm of sqrt(width); one with scaling "none"."""
    if scaling == "none":
        return Scales(1.0, 1.0)
    x = _scale_of(sample.x)
    return Scales(x, x if sample.target is None else _scale_of(sample.target))


def begin(
    config: TrainConfig,
    seed: int,
    sample: Sample,
    scales: Scales,
    initial: SAE | None = None,
    share: Share | None = None,
) -> SAE:
    """Return the untrained SAE of one seed; it depends only on the arguments.

    If `initial` is given, which takes unscaled activations, it is converted to scaled ones. With a
    share, the result is that share of the SAE, with decoder rows as `FusedStep` normalises them; no
    more is drawn than a block at a time, unless `directions` is "cov".
    """
    if initial is not None:
        whole = _taken_on(config, initial, sample, scales)
        if share is None:
            return whole
        if config.rules.unit_norm:
            with torch.no_grad():
                reference.normalise_rows(whole.W_dec)
        return shared(whole, share)
    x = sample.x * scales.x
    target = x if sample.target is None else sample.target * scales.target
    sae = _zeros(config, x.shape[1], None if sample.target is None else target.shape[1], share)
    generator = torch.Generator("cpu").manual_seed(seed)
    tied = config.tied and not sae.transcodes
    with torch.no_grad():
        for start, block in _directions(config, target, generator):
            if tied:
                _place(block, start, sae.W_enc, share)
            if share is not None and config.rules.unit_norm:
                reference.normalise_rows(block)
            if not config.rules.unit_norm:
                block.mul_(config.decoder_norm)
            own = block if share is None else share.of("W_dec", block)
            sae.W_dec[start : start + len(block)] = own
        for start, block in () if tied else _directions(config, x, generator):
            _place(block, start, sae.W_enc, share)
        if config.b_dec != "zeros":
            sae.b_dec.copy_(_centre(target, config.b_dec))
    return sae


def _zeros(config: TrainConfig, d: int, d_out: int | None, share: Share | None) -> SAE:
    """Return an SAE whose directions are zero, or a share of one."""
    sae = SAE(
        d,
        config.latents,
        k=config.k,
        variant=config.variant,
        by_norm=config.by_norm,
        d_out=d_out,
        device="meta",
    )
    for name, whole in list(sae.named_parameters()):
        own = whole if share is None else share.of(name, whole)
        sae.register_parameter(
            name, nn.Parameter(torch.zeros(own.shape, dtype=torch.float32, device="cpu"))
        )
    for name, buffer in list(sae.named_buffers()):
        sae.register_buffer(name, torch.zeros(buffer.shape, dtype=torch.float32, device="cpu"))
    if config.variant == "jumprelu":
        nn.init.constant_(sae.jump_threshold, FIRST_THRESHOLD)
    return sae


def _place(block: Tensor, start: int, encoder: Tensor, share: Share | None) -> None:
    """Copy rows of W_enc from `start` on, as far as they belong to the share."""
    first = 0 if share is None else share.rows.start
    low, high = max(start, first), min(start + len(block), first + len(encoder))
    if low < high:
        encoder[low - first : high - first] = block[low - start : high - start]


def folded(sae: SAE, scales: Scales) -> SAE:
    """Fold the scales into an SAE: it then maps unscaled activations as `sae` maps scaled ones.

    The values of its codes are divided by `scales.x`; the directions stay, and so do the norms of
    the decoder unless it is a transcoder with different scales.

    Returns:
        A new SAE.
    """
    out = copy.deepcopy(sae)
    with torch.no_grad():
        for name, values in out.state_dict().items():
            if name in _VALUES:
                values.div_(scales.x)
        out.W_dec.mul_(scales.x / scales.target)
        out.b_dec.div_(scales.target)
    return out


def _taken_on(config: TrainConfig, initial: SAE, sample: Sample, scales: Scales) -> SAE:
    """Convert `initial`, which takes unscaled activations, to an SAE of scaled activations."""
    d_out = sample.x.shape[1] if sample.target is None else sample.target.shape[1]
    check_fits(config, initial)
    _check_equal(
        ("d", initial.d, sample.x.shape[1]),
        ("d_out", initial.d_out, d_out),
        ("transcodes", initial.transcodes, sample.target is not None),
    )
    # Norms are checked here, after the scales, which change the norms of a transcoder.
    sae = copy.deepcopy(initial).float().cpu()
    sae = folded(sae, Scales(1 / scales.x, 1 / scales.target))
    if sae.transcodes and config.rules.unit_norm:
        _make_mean_norm_one(sae)
    norms = sae.W_dec.detach().norm(dim=1)
    if config.rules.unit_norm and bool(((norms - 1).abs() > 1e-3).any()):
        raise ValueError(
            f"initial must have decoder rows of norm 1, which the rules restore after every step, "
            f"got norms from {norms.min():.3g} to {norms.max():.3g}; scale the rows, or train with "
            f"Rules(unit_norm=False)"
        )
    sae.k = config.k
    return sae


def check_fits(config: TrainConfig, initial: SAE) -> None:
    """Raise a ValueError unless the settings of an initial SAE are those of a config."""
    _check_equal(
        ("latents", initial.m, config.latents),
        ("variant", initial.variant, config.variant),
        ("by_norm", initial.by_norm, config.by_norm),
    )


def _check_equal(*facts: tuple[str, object, object]) -> None:
    for name, got, expected in facts:
        if got != expected:
            raise ValueError(
                f"initial must have {name}={expected!r}, as config and activations require, got "
                f"{got!r}"
            )


def _make_mean_norm_one(sae: SAE) -> None:
    """Multiply decoder rows by one factor and divide values by it: reconstructions stay the same.

    The norms of a transcoder that was trained with norms of one are the ratio of the scales of its
    rows, which differs from that of other rows.
    """
    with torch.no_grad():
        mean = float(sae.W_dec.norm(dim=1).mean())
        if mean > 0:
            sae.W_dec.div_(mean)
            for name, values in sae.state_dict().items():
                if name == "W_enc" or name in _VALUES:
                    values.mul_(mean)


def _scale_of(rows: Tensor) -> float:
    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    mean = float(vector_sum(norms)) / len(rows)
    return rows.shape[1] ** 0.5 / mean if mean > 0 else 1.0


def _directions(
    config: TrainConfig, rows: Tensor, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Draw directions [latents, d] of norm one; return blocks of them and their first latents."""
    if config.directions == "cov":
        covariance = activation_covariance(rows, progress=False)
        with one_thread():  # so that the bits do not depend on the number of threads
            root = covariance_root(covariance).float()
            drawn = (
                torch.randn(
                    config.latents,
                    len(root),
                    generator=generator,
                    dtype=torch.float32,
                    device="cpu",
                )
                @ root
            )
        reference.normalise_rows(drawn)
        yield 0, drawn
        return
    # A last block of fewer than 16 numbers would be drawn in another way.
    starts = range(0, max(1, config.latents - 16), _BLOCK)
    for start, end in zip(starts, [*starts[1:], config.latents], strict=True):
        block = torch.randn(
            end - start, rows.shape[1], generator=generator, dtype=torch.float32, device="cpu"
        )
        reference.normalise_rows(block)
        yield start, block


def _centre(rows: Tensor, kind: str) -> Tensor:
    mean = column_sum(rows) / len(rows)
    return mean if kind == "mean" else _geometric_median(rows, mean)


def _geometric_median(rows: Tensor, start: Tensor) -> Tensor:
    """Compute the point with the smallest mean distance to the rows by Weiszfeld's iteration."""
    point = start
    for _ in range(100):
        weights = 1 / torch.linalg.vector_norm(rows - point, dim=1, keepdim=True).clamp(min=1e-12)
        moved = column_sum(rows * weights) / column_sum(weights)
        if torch.linalg.vector_norm(moved - point) <= 1e-6 * torch.linalg.vector_norm(moved):
            return moved
        point = moved
    return point
