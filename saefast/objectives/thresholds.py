"""ReLU with an L1 penalty, JumpReLU with a target for L0: latents above a threshold are active."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from saefast.objectives.dense import scores_of, squared_error
from saefast.objectives.forward import WHEN_SPARSE, Current, Forward, Loss
from saefast.objectives.topk import of_code
from saefast.ops.latent_sum import column_sum
from saefast.packed_encoder import PackedEncoder
from saefast.sae import SAE
from saefast.types import SparseCode

_ROOM = 128  # for the active latents of a row, at first


class ReLU:
    """Squared error plus `sparsity` times the sum of activations, each times its row's norm."""

    fused = WHEN_SPARSE

    def __init__(self, sparsity: float) -> None:
        self._sparsity, self._width = sparsity, _ROOM

    def forward(
        self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        sae, n = encoder.sae, len(target)
        zero = sae.b_enc.new_zeros(())
        values, indices, counts = encoder.above(inputs, zero, min(self._width, sae.m))
        self._width = 2 * max(1, int(counts.amax()))
        found = of_code(encoder, SparseCode(values, indices), target)
        weight = self._sparsity * now.pressure / n
        norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
        active = values > 0
        ones = values.new_ones(n, 1)
        sums = torch.ops.saefast.latent_sum(values, indices, ones, sae.m).squeeze(1)
        penalty = weight * column_sum((sums * norms).double()[:, None]).squeeze(0)
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

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {}


class JumpReLU:
    """Squared error plus `sparsity` * (L0 / k - 1)^2 (Rajamanoharan et al. 2024).

    A step has no gradient. In its place is that of a step smeared out over `bandwidth`, for the
    thresholds alone.
    """

    fused = WHEN_SPARSE

    def __init__(self, sparsity: float, bandwidth: float) -> None:
        self._sparsity, self._bandwidth, self._width = sparsity, bandwidth, _ROOM

    def forward(
        self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        sae, n = encoder.sae, len(target)
        threshold = sae.jump_threshold
        found = encoder.above(inputs, threshold - self._bandwidth / 2, min(self._width, sae.m))
        self._width = 2 * max(1, int(found.counts.amax()))
        scores, indices, counts = found
        there = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
        limit = threshold[indices]
        active = there & (scores > limit)
        code = SparseCode(torch.where(active, scores, 0.0), indices)
        forward = of_code(encoder, code, target)
        near = there & ((scores - limit).abs() < self._bandwidth / 2)
        dots = torch.ops.saefast.gather_dots(
            forward.residual, sae.W_dec, torch.where(near, indices, 0)
        )
        l0 = int(active.sum()) / n
        excess = l0 / now.k - 1
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

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {}


class _Jump(torch.autograd.Function):
    """scores where they exceed their threshold; the threshold's gradient is smeared out."""

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
    """1 where scores exceed their threshold; only the threshold gets a gradient."""

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
