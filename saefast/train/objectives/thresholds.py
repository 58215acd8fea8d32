"""ReLU with an L1 penalty and JumpReLU with a target for L0: latents active above a threshold."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from saefast.ops import gpu
from saefast.ops.latent_sum import vector_sum
from saefast.sae import SAE
from saefast.train.objectives.dense import scores_of, squared_error
from saefast.train.objectives.forward import Current, Encoded, Forward, FusedPath, Loss
from saefast.train.objectives.room import Room
from saefast.train.objectives.topk import of_listed
from saefast.train.packed_encoder import PackedEncoder
from saefast.types import SparseCode

_ROOM = 128  # initial capacity for the active latents of a row


class _Listed(ABC):
    """Base of objectives whose number of active latents is bounded by a threshold only."""

    fused = FusedPath.WHEN_SPARSE
    _places: Room

    @property
    def room(self) -> int:
        """See `Objective`."""
        return self._places.places

    @abstractmethod
    def bar(self, sae: SAE) -> Tensor:
        """Return the threshold above which pre-activations are listed, [m] or [].

        Args:
            sae: the SAE to train.
        """

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        if not gpu.has(inputs):
            return self.encode_all(encoder, inputs, now)
        found = encoder.above_in(self.room, inputs, self.bar(encoder.sae))
        code = SparseCode(found.values, found.indices)
        return Encoded(code, found.counts, report=found.counts.amax()[None])

    def fits(self, report: Sequence[int]) -> bool:
        """See `Objective`."""
        return self._places.fits(report[0])

    def encode_all(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        found = encoder.above(inputs, self.bar(encoder.sae), self.room)
        self._places.fits(int(found.counts.amax()))
        return Encoded(SparseCode(found.values, found.indices), found.counts)

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {}


class ReLU(_Listed):
    """Squared error plus `sparsity` times the sum of activations times decoder norms.

    Args:
        sparsity: weight of the penalty.
    """

    def __init__(self, sparsity: float) -> None:
        self._sparsity, self._places = sparsity, Room(_ROOM)

    def bar(self, sae: SAE) -> Tensor:
        """Return zero, [].

        Args:
            sae: the SAE to train.
        """
        return sae.b_enc.new_zeros(())

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        sae, n = encoder.sae, len(target)
        values, indices = encoded.code
        found = of_listed(encoder, encoded.code, target)
        weight = self._sparsity * now.pressure / n
        norms = encoder.decoder_norms()
        active = values > 0
        ones = values.new_ones(n, 1)
        sums = torch.ops.saefast.latent_sum(values, indices, ones, sae.m).squeeze(1)
        penalty = weight * vector_sum(sums * norms)
        return found._replace(
            value_grads=found.value_grads + weight * norms[indices] * active,
            shrink_dec=torch.where(norms > 0, weight * sums / norms, 0.0),
            loss=found.loss + penalty,
        )

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        acts = scores_of(sae, x).relu()
        weight = self._sparsity * now.pressure / len(target)
        return squared_error(sae, acts, target, weight * (acts * sae.W_dec.norm(dim=1)).sum())


class JumpReLU(_Listed):
    """Squared error plus `sparsity` * (L0 / k - 1)^2 (Rajamanoharan et al. 2024).

    The step function has no useful gradient. The thresholds, and only they, get the gradient of a
    step smoothed over `bandwidth`.

    Args:
        sparsity: weight of the penalty.
        bandwidth: width of the smoothed step.
    """

    def __init__(self, sparsity: float, bandwidth: float) -> None:
        self._sparsity, self._bandwidth, self._places = sparsity, bandwidth, Room(_ROOM)

    def bar(self, sae: SAE) -> Tensor:
        """Return thresholds minus half the bandwidth, [m]: latents below have no gradient.

        Args:
            sae: the SAE to train.
        """
        return sae.jump_threshold - self._bandwidth / 2

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        sae, n = encoder.sae, len(target)
        (scores, indices), counts = encoded.code, encoded.counts
        assert counts is not None
        there = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
        limit = sae.jump_threshold[indices]
        active = there & (scores > limit)
        code = SparseCode(torch.where(active, scores, 0.0), indices)
        forward = of_listed(encoder, code, target)
        near = there & ((scores - limit).abs() < self._bandwidth / 2)
        # A GPU reads nothing for indices out of range.
        elsewhere = -1 if gpu.has(target) else 0
        dots = encoder.decoder_dots(forward.residual, torch.where(near, indices, elsewhere))
        excess = active.sum().double() / n / now.k - 1
        weight = self._sparsity * now.pressure
        by_step = 2 * weight * excess / (now.k * n)
        grads = torch.where(near, -(limit * dots + by_step) / self._bandwidth, 0.0)
        ones = scores.new_ones(n, 1)
        summed = torch.ops.saefast.latent_sum(grads, indices, ones, sae.m).squeeze(1)
        return forward._replace(threshold_gradient=summed, loss=forward.loss + weight * excess**2)

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        scores, threshold = scores_of(sae, x), sae.jump_threshold
        smeared = (scores, threshold, self._bandwidth)
        acts: Tensor = _Jump.apply(*smeared)  # type: ignore[no-untyped-call]
        steps: Tensor = _Step.apply(*smeared)  # type: ignore[no-untyped-call]
        l0 = steps.sum() / len(target)
        weight = self._sparsity * now.pressure
        return squared_error(sae, acts, target, weight * (l0 / now.k - 1).square())


class _Jump(torch.autograd.Function):
    """Scores above their threshold, else zero; the threshold gets a smoothed gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(scores, threshold)
        ctx.bandwidth = bandwidth  # type: ignore[attr-defined]
        return scores * (scores > threshold)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scores, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        bandwidth: float = ctx.bandwidth  # type: ignore[attr-defined]
        near = (scores - threshold).abs() < bandwidth / 2
        by_threshold = -(threshold / bandwidth) * near * grads[0]
        return grads[0] * (scores > threshold), by_threshold.sum(0), None


class _Step(torch.autograd.Function):
    """One for scores above their threshold, else zero; only the threshold gets a gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(scores, threshold)
        ctx.bandwidth = bandwidth  # type: ignore[attr-defined]
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scores, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        bandwidth: float = ctx.bandwidth  # type: ignore[attr-defined]
        near = (scores - threshold).abs() < bandwidth / 2
        return None, (-near.to(scores.dtype) / bandwidth * grads[0]).sum(0), None
