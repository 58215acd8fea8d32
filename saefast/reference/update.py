"""Updates of the parameters of latents: gradients, Adam and norms."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saefast.reference.decode import latent_sum
from saefast.types import NO_DECAY, Decay, Learned, Update


def adam_rates(lr: Tensor, step: Tensor, beta1: float, beta2: float) -> Tensor:
    """Compute the bias-corrected rates of an Adam step.

    Args:
        lr: [] float64, learning rate.
        step: [] number of the step, counted from 1.
        beta1: decay rate of first moments.
        beta2: decay rate of second moments.

    Returns:
        [2]: the step size lr / (1 - beta1^step), and sqrt(1 - beta2^step), by which the square
        roots of second moments are divided.
    """
    return torch.stack([lr / (1 - beta1**step), (1 - beta2**step).sqrt()])


def adam(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rates: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Apply one step of `torch.optim.Adam` to one tensor, in place.

    Args:
        parameter: the weight, of any shape; updated.
        first: first moment, of the same shape; updated.
        second: second moment, of the same shape; updated.
        gradient: gradient, of the same shape.
        rates: [2] float64, from `adam_rates`.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: term added to the denominator.
    """
    step_size, root = rates.to(parameter.dtype)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameter.sub_(step_size * (first / (second.sqrt() / root + eps)))


def count_idle(idle: Tensor, fired: Tensor, tokens: int) -> None:
    """Update the number of tokens since each latent fired, in place.

    Args:
        idle: [m] int64; increased by `tokens`, or set to zero for latents that fired.
        fired: [m] number of tokens of the batch on which each latent fired.
        tokens: number of tokens of the batch.
    """
    idle += tokens
    idle.masked_fill_(fired > 0, 0)


def latent_gradients(update: Update) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Compute the gradients of w_enc, b_enc and w_dec from the results of a forward pass.

    Args:
        update: operands, see `Update`.

    Returns:
        The gradients of w_enc [m, d], b_enc [m] and w_dec [m, d_out]; the gradient of the encoder's
        inputs summed over tokens [d]; and the number of tokens on which each latent fired [m].
    """
    indices, latents = update.indices, len(update.b_enc)
    active = update.values != 0
    values, value_grads = update.values * active, update.value_grads * active
    ones = values.new_ones(values.shape[0], 1)
    if update.group_ends is None:
        decoder_gradient = latent_sum(values, indices, update.residual, latents)
    else:
        group = torch.searchsorted(update.group_ends, indices.contiguous(), right=True)
        parts = [
            latent_sum(values * (group == g), indices, rows, latents)
            for g, rows in enumerate(update.residual)
        ]
        decoder_gradient = torch.stack(parts).sum(0)
    encoder_gradient = latent_sum(value_grads, indices, update.inputs, latents)
    bias_gradient = latent_sum(value_grads, indices, ones, latents).squeeze(1)
    fired = latent_sum(active.to(values.dtype), indices, ones, latents).squeeze(1).long()
    gradients = (encoder_gradient, bias_gradient, decoder_gradient)
    if update.extra is not None:
        where, *extra = update.extra
        real = where < latents
        for gradient, more in zip(gradients, extra, strict=True):
            gradient.index_add_(0, where[real], more[real])
    input_grad_sum = bias_gradient @ update.w_enc
    shape_gradients(
        gradients,
        (update.w_enc, update.b_enc, update.w_dec),
        project=update.projects,
        decay=update.decay,
        factor=update.factor,
    )
    return gradients, input_grad_sum, fired


def shape_gradients(
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    project: bool,
    decay: Decay = NO_DECAY,
    factor: Tensor | None = None,
) -> None:
    """Apply penalties, projection and scaling to the gradients, in place.

    Args:
        gradients: gradients of the parameters, of the same shapes; updated.
        parameters: w_enc [m, d], b_enc [m] and w_dec [m, d_out].
        project: whether to remove the component of w_dec's gradient along each row.
        decay: penalty terms, added first.
        factor: [] factor of all gradients, applied last; None: one.
    """
    w_enc, _, w_dec = parameters
    signs = (0.0, 0.0) if decay.sign is None else decay.sign.to(w_enc.dtype)
    for gradient, weight, shrink, sign in zip(
        gradients[::2], (w_enc, w_dec), decay[:2], signs, strict=True
    ):
        if shrink is not None:
            gradient += shrink[:, None] * weight
        if decay.sign is not None:
            gradient += sign * weight.sign()
    if project:
        gradients[2].sub_((gradients[2] * w_dec).sum(1, keepdim=True) * w_dec)
    if factor is not None:
        for gradient in gradients:
            gradient *= factor


def latent_update(update: Update) -> tuple[Tensor, Tensor]:
    """Compute gradients and apply Adam to w_enc, b_enc and w_dec, in place.

    Args:
        update: operands, see `Update`; the packed weight is not refreshed.

    Returns:
        The gradient of the encoder's inputs summed over tokens [d], and the number of tokens on
        which each latent fired [m].
    """
    gradients, input_grad_sum, fired = latent_gradients(update)
    beta1, beta2, eps, rates = update.beta1, update.beta2, update.eps, update.rates
    for learned, gradient in _that_learn(update, gradients):
        adam(*learned, gradient, rates, beta1=beta1, beta2=beta2, eps=eps)
    if update.unit_norm and update.update_decoder:
        normalise_rows(update.w_dec)
    return input_grad_sum, fired


def gradient_squares(update: Update) -> tuple[Tensor, Tensor]:
    """Compute the squared norm of the gradients that `latent_update` would pass to Adam.

    Args:
        update: operands, see `Update`; nothing is updated.

    Returns:
        The gradient of the encoder's inputs summed over tokens [d], and the squared norm of each
        latent's gradients, [m] float64.
    """
    gradients, input_grad_sum, _ = latent_gradients(update)
    squares = update.b_enc.new_zeros(update.b_enc.shape, dtype=torch.float64)
    for _, gradient in _that_learn(update, gradients):
        squares += gradient.double().reshape(len(squares), -1).square().sum(1)
    return input_grad_sum, squares


def _that_learn(update: Update, gradients: Sequence[Tensor]) -> Iterator[tuple[Learned, Tensor]]:
    """Return the parameters that are not frozen, with their gradients."""
    learned = (update.encoder, update.bias, update.decoder)
    learns = (update.update_encoder, True, update.update_decoder)
    return itertools.compress(zip(learned, gradients, strict=True), learns)


def normalise_rows(weight: Tensor) -> None:
    """Scale every row to norm one, in place; rows of zeros are unchanged.

    Args:
        weight: [m, d] rows.
    """
    norm = weight.norm(dim=1, keepdim=True)
    weight.div_(torch.where(norm > 0, norm, 1.0))
