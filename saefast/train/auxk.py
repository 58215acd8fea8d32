"""AuxK: dead latents learn to explain what the living ones left over.

The dead latents are gathered into small matrices. On a GPU products of these are dense: of the
thousands that are active on every token, gathering rows would cost an order of magnitude more. The
host does not wait for the number of dead latents: kernels read it and do no more than it asks for.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import gpu
from saefast.ops.latent_sum import column_sum
from saefast.sae import SAE
from saefast.train.settings import AuxK


class DeadLatents(NamedTuple):
    """The dead latents that take part in a step."""

    latents: Tensor
    """int64 [c], ascending; on a GPU c is the capacity, and what no dead latent takes holds m"""
    number: Tensor
    """int32 [1], the number of dead latents in the list, on its device"""


class AuxGradients(NamedTuple):
    """The auxiliary loss, and its gradients for the latents it reached."""

    loss: Tensor
    latents: Tensor
    """[c]; the number of latents where there are fewer dead ones: such rows of the gradients are
    not initialised"""
    w_enc: Tensor
    """[c, d]"""
    b_enc: Tensor
    """[c]"""
    w_dec: Tensor
    """[c, d_out]"""


def dead_latents(idle: Tensor, settings: AuxK) -> DeadLatents:
    """List the first dead latents by index, at most as many as the capacity.

    `idle` [m] counts tokens since a latent fired. On a GPU the host does not wait for the list.
    """
    m = idle.shape[0]
    capacity = min(m, settings.capacity or max(m // 8, 1))
    if gpu.has(idle) and gpu.runs_triton(idle):
        return DeadLatents(
            *gpu.launch("dead_latents.dead_latents", idle, settings.idle_limit(), capacity)
        )
    dead = (idle >= settings.idle_limit()).cumsum(0)
    if not gpu.has(dead):  # there the host may look
        capacity = min(capacity, int(dead[-1]))
    # The i-th dead latent is where the count of dead ones first reaches i.
    latents = torch.searchsorted(dead, torch.arange(1, capacity + 1, device=idle.device))
    return DeadLatents(latents, dead[-1:].clamp(max=capacity).int())


def revive(
    sae: SAE,
    idle: Tensor,
    inputs: Tensor,
    residual: Tensor,
    settings: AuxK | None,
    *,
    scale: float = 1.0,
    rounded: bool = False,
) -> AuxGradients | None:
    """Compute what the dead latents of an SAE learn, by `auxk_gradients`; None without settings.

    `idle` [m] counts tokens since a latent fired.
    """
    if settings is None:
        return None
    return auxk_gradients(
        inputs,
        residual,
        sae.W_enc,
        sae.b_enc,
        sae.W_dec,
        dead_latents(idle, settings),
        settings,
        scale=scale,
        rounded=rounded,
    )


def auxk_gradients(
    inputs: Tensor,
    residual: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    dead: DeadLatents,
    settings: AuxK,
    *,
    scale: float = 1.0,
    rounded: bool = False,
) -> AuxGradients:
    """Compute the loss by which dead latents explain the error, and its gradients.

    The weight of the loss is zero if no latent is dead. Which latents are active on a token follows
    from their scores; of equal scores those of lower latents.

    On a GPU in float32 the operands of all products are split into three bfloat16 parts, which
    leaves what float32 products leave: a product over D numbers is off by at most
    (2.5 (D + 32) 2^-24 + 2^-23) |x| |w|, where |x| and |w| are lengths. Latents whose scores are
    closer than that may be exchanged, as they may between any two orders of a float32 sum. On a CPU
    products are float32 products.

    Args:
        inputs: [n, d], what the encoder multiplies.
        residual: [n, d_out], of which `scale` times is the error x - reconstruction, held fixed.
        w_enc: [m, d].
        b_enc: [m].
        w_dec: [m, d_out].
        dead: the dead latents.
        settings: the settings of the loss.
        scale: see `residual`.
        rounded: whether products on a GPU round their operands to bfloat16; sums stay float32.
    """
    if gpu.has(inputs) and gpu.serves(inputs):
        found = gpu.launch(
            "auxk.auxk_gradients",
            inputs,
            residual,
            w_enc,
            b_enc,
            w_dec,
            *dead,
            scale=scale,
            k=settings.actives(w_dec.shape[1]),
            coefficient=settings.coefficient,
            normalised=settings.normalised,
            signed=settings.signed,
            rounded=rounded,
        )
        return AuxGradients(found.loss, dead.latents, *found[1:])
    error = scale * residual
    real = dead.latents < w_enc.shape[0]
    at = torch.where(real, dead.latents, 0)
    encoder, decoder = w_enc[at], w_dec[at]
    shift = torch.where(real, b_enc[at], -torch.inf)
    weight = _factor_of(error, real, settings)
    gradients_of = dense_gradients if gpu.has(inputs) else sparse_gradients
    missed, *gradients = gradients_of(inputs, encoder, shift, decoder, error, weight, settings)
    return AuxGradients(weight * column_sum(missed.square()).sum(), dead.latents, *gradients)


def _factor_of(error: Tensor, real: Tensor, settings: AuxK) -> Tensor:
    """Return what the sum of squares is multiplied by; zero if nothing is dead."""
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
) -> tuple[Tensor, ...]:
    """Compute what is missed of the error, and the gradients of encoder, shift and decoder.

    In plain torch and without a wait for the device: for float64 on a GPU, and for GPUs on which
    Triton cannot run.
    """
    acts = inputs @ encoder.T + shift
    reference.keep_largest(acts, settings.actives(error.shape[1]), signed=settings.signed)
    missed = acts @ decoder - error
    gradient = 2.0 * weight * missed
    act_grads = (gradient @ decoder.T).masked_fill_(acts == 0, 0.0)
    return missed, act_grads.T @ inputs, act_grads.sum(0), acts.T @ gradient


def sparse_gradients(
    inputs: Tensor,
    encoder: Tensor,
    shift: Tensor,
    decoder: Tensor,
    error: Tensor,
    weight: Tensor,
    settings: AuxK,
) -> tuple[Tensor, ...]:
    """Compute the same by the sparse ops, whose bits do not depend on the number of threads."""
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
