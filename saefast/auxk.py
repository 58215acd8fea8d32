"""AuxK: dead latents learn to explain what the living ones left over.

The dead latents are gathered into small matrices. On a GPU products of these are dense: of the
thousands that are active on every token, gathering rows would cost an order of magnitude more.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.ops import gpu
from saefast.ops.keep_largest import keep_largest
from saefast.ops.latent_sum import column_sum


@dataclass(frozen=True)
class AuxK:
    """Settings of the auxiliary loss; the defaults are those of Gao et al. 2024."""

    k: int | None = None
    """how many dead latents explain each token; None: half the width of the activations"""
    coefficient: float = 1 / 32
    dead_after: int = 10_000_000
    """tokens without firing after which a latent is dead"""
    capacity: int | None = None
    """how many dead latents can take part in a step, lowest index first; None: an eighth of all.
    On a GPU a step always pays for that many, since it does not wait to learn how many are dead"""
    normalised: bool = True
    """divide by the variance of the error over the batch; otherwise sum over the width, average
    over tokens, and scale down while fewer than k latents are dead, as SAELens does"""
    signed: bool = False
    """let negative activations count, as in SAELens"""

    def actives(self, d: int) -> int:
        """How many dead latents explain a token of width d."""
        return max(d // 2, 1) if self.k is None else self.k


class AuxGradients(NamedTuple):
    """The auxiliary loss, and its gradients for the latents it reached."""

    loss: Tensor
    latents: Tensor
    """[c]; the number of latents where there are fewer dead ones"""
    w_enc: Tensor
    """[c, d]"""
    b_enc: Tensor
    w_dec: Tensor


def dead_latents(idle: Tensor, settings: AuxK) -> Tensor:
    """The first dead latents by index, [capacity]; where there are fewer, the number of latents.

    `idle` [m] counts tokens since a latent fired.
    """
    m = idle.shape[0]
    capacity = min(m, settings.capacity or max(m // 8, 1))
    dead = (idle >= settings.dead_after).cumsum(0)
    if not gpu.has(dead):  # there the host may look
        capacity = min(capacity, int(dead[-1]))
    # The i-th dead latent is where the count of dead ones first reaches i.
    return torch.searchsorted(dead, torch.arange(1, capacity + 1, device=idle.device))


def auxk_gradients(
    inputs: Tensor,
    error: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    latents: Tensor,
    settings: AuxK,
    *,
    rounded: bool = False,
) -> AuxGradients:
    """What the dead `latents` make of `error` [n, d] = x - reconstruction, which is held fixed.

    `inputs` [n, d] is what the encoder multiplies. `rounded`: products on a GPU may round their
    operands to bfloat16.
    """
    real = latents < w_enc.shape[0]
    at = torch.where(real, latents, 0)
    encoder, decoder = w_enc[at], w_dec[at]
    shift = torch.where(real, b_enc[at], -torch.inf)
    dead = (inputs, encoder, shift, decoder)
    weight = _weight_of(error, real, settings)
    if gpu.has(inputs):
        missed, *gradients = dense_gradients(*dead, error, weight, settings, rounded=rounded)
    else:
        missed, *gradients = sparse_gradients(*dead, error, weight, settings)
    return AuxGradients(weight * column_sum(missed.square()).sum(), latents, *gradients)


def _weight_of(error: Tensor, real: Tensor, settings: AuxK) -> Tensor:
    """What the sum of squares is multiplied by; nothing if nothing is dead."""
    n = error.shape[0]
    if settings.normalised:
        spread = column_sum((error - column_sum(error) / n).square()).sum()
        weight = torch.where(spread > 0, settings.coefficient / spread, 0.0)
    else:
        dead = real.sum().to(error.dtype)
        share = (dead / settings.actives(error.shape[1])).clamp(max=1.0)
        weight = share * (settings.coefficient / n)
    return torch.where(real.any(), weight, 0.0)


def dense_gradients(
    inputs: Tensor,
    encoder: Tensor,
    shift: Tensor,
    decoder: Tensor,
    error: Tensor,
    weight: Tensor,
    settings: AuxK,
    *,
    rounded: bool,
) -> tuple[Tensor, ...]:
    """What is missed of the error, and the gradients of encoder, shift and decoder: five products.

    For GPUs: all sizes are known beforehand, and no product is sparse.
    """

    def product(left: Tensor, right: Tensor) -> Tensor:
        if rounded and left.dtype == torch.float32:
            left, right = left.bfloat16(), right.bfloat16()
        out: Tensor = gpu.kernels("matmul").product_of(left, right)
        return out

    acts = product(inputs, encoder.T) + shift
    keep_largest(acts, settings.actives(error.shape[1]), settings.signed)
    missed = product(acts, decoder) - error
    gradient = 2.0 * weight * missed
    act_grads = product(gradient, decoder.T).masked_fill_(acts == 0, 0.0)
    return (
        missed,
        product(act_grads.T, inputs),
        act_grads.sum(0),
        product(acts.T, gradient),
    )


def sparse_gradients(
    inputs: Tensor,
    encoder: Tensor,
    shift: Tensor,
    decoder: Tensor,
    error: Tensor,
    weight: Tensor,
    settings: AuxK,
) -> tuple[Tensor, ...]:
    """The same by the sparse ops, whose bits do not depend on the number of threads."""
    ops, c = torch.ops.saefast, encoder.shape[0]
    if c == 0:
        return -error, encoder, shift, decoder
    k = min(settings.actives(error.shape[1]), c)
    values, indices = ops.topk_encode(inputs, encoder, shift, None, k, "exact")
    stays = values > (-torch.inf if settings.signed else 0.0)
    values = values.masked_fill(~stays, 0.0)
    missed = ops.sparse_decode(values, indices, decoder, None) - error
    gradient = 2.0 * weight * missed
    act_grads = ops.gather_dots(gradient, decoder, indices).masked_fill(values == 0, 0.0)
    ones = inputs.new_ones(inputs.shape[0], 1)
    return (
        missed,
        ops.latent_sum(act_grads, indices, inputs, c),
        ops.latent_sum(act_grads, indices, ones, c).squeeze(1),
        ops.latent_sum(values, indices, gradient, c),
    )
