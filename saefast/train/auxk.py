"""AuxK: the auxiliary loss by which dead latents learn to explain the reconstruction error.

The dead latents are gathered into small matrices. On a GPU their products are dense: with thousands
of active latents on every token, gathering rows would cost an order of magnitude more. The host
does not wait for the number of dead latents: the kernels read it and limit their work to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import gpu
from saefast.ops.latent_sum import column_sum
from saefast.sae import SAE
from saefast.train.auxk_products import AuxProducts, WholeProducts
from saefast.train.settings import AuxK


class DeadLatents(NamedTuple):
    """The dead latents that take part in a step."""

    latents: Tensor
    """[c] int64, ascending; on a GPU c is the capacity, and unused entries hold m"""
    number: Tensor
    """[1] int32, number of dead latents in the list, on its device"""


class AuxGradients(NamedTuple):
    """The auxiliary loss and its gradients for the dead latents."""

    loss: Tensor
    """[] value of the loss"""
    latents: Tensor
    """[c] int64, dead latents; m in unused entries, whose rows of the gradients are
    uninitialised"""
    w_enc: Tensor
    """[c, d] gradients of rows of W_enc"""
    b_enc: Tensor
    """[c] gradients of entries of b_enc"""
    w_dec: Tensor
    """[c, d_out] gradients of rows of W_dec"""


def dead_latents(idle: Tensor, settings: AuxK) -> DeadLatents:
    """List the dead latents with the lowest indices, at most as many as the capacity.

    `idle` [m] is the number of tokens since each latent fired. On a GPU the host does not wait.

    Returns:
        Indices of the dead latents [c], and their number.
    """
    m = idle.shape[0]
    capacity = min(m, settings.capacity or max(m // 8, 1))
    if gpu.has(idle) and gpu.runs_triton(idle):
        return DeadLatents(
            *gpu.launch("auxk.dead_latents.dead_latents", idle, settings.idle_limit(), capacity)
        )
    dead = (idle >= settings.idle_limit()).cumsum(0)
    if not gpu.has(dead):  # on the CPU the host can read the number
        capacity = min(capacity, int(dead[-1]))
    # The i-th dead latent is the index at which the cumulative count first reaches i.
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
    products: Callable[[Tensor], AuxProducts] | None = None,
) -> AuxGradients | None:
    """Compute `auxk_gradients` for the dead latents of an SAE; return None without settings.

    `idle` [m] is the number of tokens since each latent fired. `products` returns the products for
    a list of dead latents; None: the products of one process.

    Returns:
        Gradients for the dead latents, or None.
    """
    if settings is None:
        return None
    dead = dead_latents(idle, settings)
    return auxk_gradients(
        inputs,
        residual,
        sae.W_enc,
        sae.b_enc,
        sae.W_dec,
        dead,
        settings,
        scale=scale,
        absolute=sae.variant == "abstopk",
        rounded=rounded,
        products=None if products is None else products(dead.latents),
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
    absolute: bool = False,
    rounded: bool = False,
    products: AuxProducts | None = None,
) -> AuxGradients:
    """Compute the auxiliary loss, by which dead latents explain the error, and its gradients.

    The weight of the loss is zero if no latent is dead. The active latents of a token are those
    with the largest scores; ties are broken by lower index.

    On a GPU, float32 operands of all products are split into two float16 parts, which is as
    accurate as float32 products: the error of a product over D numbers is at most
    (2.5 (D + 32) 2^-24 + 2^-20) |x| |w|, where |x| and |w| are norms, unless the numbers of a
    matrix differ by more than 2^16. Latents whose scores differ
    by less may be exchanged, as between any two orders of a float32 sum. On a CPU the products are
    float32 products.

    Args:
        inputs: [n, d] inputs of the encoder.
        residual: [n, d_out]; `scale` times it is the error x - reconstruction, held constant.
        w_enc: [m, d] encoder rows.
        b_enc: [m] encoder bias.
        w_dec: [m, d_out] decoder rows.
        dead: the dead latents.
        settings: settings of the loss.
        scale: factor of `residual`.
        absolute: whether active latents are those with the largest absolute scores, which keep
            their sign.
        rounded: whether products on a GPU round their operands to bfloat16; sums stay float32.
        products: products on a CPU of a rank that has a share of the operands, of which gradients
            then have the same share; None: the products of one process.

    Returns:
        The loss and its gradients for the dead latents.
    """
    if gpu.has(inputs) and gpu.serves(inputs):
        found = gpu.launch(
            "auxk.gradients.auxk_gradients",
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
            absolute=absolute,
            rounded=rounded,
        )
        return AuxGradients(found.loss, dead.latents, *found[1:])
    if not gpu.has(inputs) and len(dead.latents) == 0:
        empty = (w_enc[:0], b_enc[:0], w_dec[:0])
        return AuxGradients(residual.new_zeros(()), dead.latents, *empty)
    error = scale * residual
    real = dead.latents < len(w_dec)
    products = products or WholeProducts(w_dec.shape[1])
    at = torch.where(real, dead.latents, 0)
    encoder, decoder = products.rows(w_enc, at), w_dec[at]
    shift = products.rows(b_enc, at)
    weight = _factor_of(error, real, settings, products)
    if gpu.has(inputs):
        shift = torch.where(real, shift, -torch.inf)
        missed, *gradients = dense_gradients(
            inputs, encoder, shift, decoder, error, weight, settings, absolute=absolute
        )
    else:  # the list is as long as there are dead latents
        missed, *gradients = sparse_gradients(
            inputs,
            encoder,
            shift,
            decoder,
            error,
            weight,
            settings,
            absolute=absolute,
            products=products,
        )
    loss = weight * products.total(column_sum(missed.square()))
    return AuxGradients(loss, dead.latents, *gradients)


def _factor_of(error: Tensor, real: Tensor, settings: AuxK, products: AuxProducts) -> Tensor:
    """Return the factor [] of the sum of squares; zero if no latent is dead."""
    n = error.shape[0]
    if settings.normalised:
        spread = products.total(column_sum((error - column_sum(error) / n).square()))
        weight = torch.where(spread > 0, settings.coefficient / spread, 0.0)
    else:
        dead = real.sum().to(error.dtype)
        share = (dead / settings.actives(products.width)).clamp(max=1.0)
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
    absolute: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the unexplained error and the gradients of encoder, shift and decoder densely.

    Plain torch without a wait for the device: for float64 on a GPU, and for GPUs on which Triton
    cannot run.

    Returns:
        Unexplained error [n, d_out], and gradients of encoder [c, d], shift [c] and decoder [c,
        d_out].
    """
    acts = inputs @ encoder.T + shift
    k, signed = settings.actives(error.shape[1]), settings.signed or absolute
    reference.keep_largest(acts, k, signed=signed, absolute=absolute)
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
    *,
    absolute: bool = False,
    products: AuxProducts | None = None,
) -> tuple[Tensor, ...]:
    """Compute the result of `dense_gradients` by the sparse ops, bitwise equal for any threads."""
    ops, c = torch.ops.saefast, decoder.shape[0]
    products = products or WholeProducts(decoder.shape[1])
    k = min(settings.actives(products.width), c)
    values, indices = products.largest(inputs, encoder, shift, k, absolute=absolute)
    stays = values > (-torch.inf if settings.signed or absolute else 0.0)
    values = values.masked_fill(~stays, 0.0)
    missed = ops.sparse_decode(values, indices, decoder, None) - error
    gradient = 2.0 * weight * missed
    act_grads = products.dots(gradient, decoder, indices).masked_fill(values == 0, 0.0)
    ones = inputs.new_ones(inputs.shape[0], 1)
    return (
        missed,
        products.sum_of_rows(act_grads, indices, inputs, c),
        products.sum_of_rows(act_grads, indices, ones, c).squeeze(1),
        ops.latent_sum(values, indices, gradient, c),
    )
