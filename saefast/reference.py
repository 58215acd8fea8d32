"""Reference implementation of every op in plain torch, for any dtype and device.

It defines the correct result and is not optimised. Every choice is explicit: the other
implementations are tested against its handling of ties, its placement of the bias and the order of
operations in Adam.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saefast.types import NO_DECAY, Decay, Learned, SparseCode, ThresholdCode, Update


def _computed(tensor: Tensor) -> Tensor:
    """Convert half-precision tensors to float32; results are rounded once, at the end."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def scores(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """Compute the scores (x @ weight.T + bias) * scale.

    Args:
        x: [n, d] rows.
        weight: [m, d] encoder rows.
        bias: [m]; -infinity masks a latent, whatever its scale. None adds nothing.
        scale: [m]; None multiplies by one.

    Returns:
        [n, m] scores, at least float32.
    """
    out = _computed(x) @ _computed(weight).T
    if bias is not None:
        out = out + _computed(bias)
    if scale is not None:
        out = out * _computed(scale)
    if bias is not None:  # a latent masked by -inf stays masked, whatever its scale
        out = torch.where(bias == -torch.inf, -torch.inf, out)
    return out


def _scores_at(
    precision: str, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    if precision == "bf16":
        folded = weight if scale is None else weight * scale[:, None]
        shift = bias if bias is None or scale is None else bias * scale
        x, weight = x.bfloat16().to(x.dtype), folded.bfloat16().to(weight.dtype)
        bias, scale = shift, None
    return scores(x, weight, bias, scale)


def topk_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    scale: Tensor | None = None,
    precision: str = "exact",
    absolute: bool = False,
) -> SparseCode:
    """Select the k largest scores of each row.

    Args:
        x: [n, d] rows.
        weight: [m, d] encoder rows.
        bias: [m], see `scores`.
        k: number of latents per row.
        scale: [m], see `scores`.
        precision: "exact", or "bf16" to round x and weight * scale to bfloat16, and nothing else.
        absolute: whether scores are ranked by their absolute value, see `sizes`.

    Returns:
        Values [n, k] in the dtype of x, with their sign, and int64 indices [n, k], by descending
        rank, those of equal rank by ascending index.
    """
    all_scores = _scores_at(precision, x, weight, bias, scale)
    ranks = sizes(all_scores) if absolute else all_scores
    order = torch.sort(ranks, dim=1, descending=True, stable=True).indices[:, :k]
    return SparseCode(all_scores.gather(1, order).to(x.dtype), order)


def sizes(scores: Tensor) -> Tensor:
    """Return the absolute values of scores; -infinity, the score of a masked latent, stays."""
    return torch.where(scores == -torch.inf, -torch.inf, scores.abs())


def threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: Tensor,
    width: int,
    scale: Tensor | None = None,
    precision: str = "exact",
) -> ThresholdCode:
    """Select the scores above a threshold, at most the `width` largest of each row.

    Args:
        x: [n, d] rows.
        weight: [m, d] encoder rows.
        bias: [m], see `scores`.
        threshold: [m], one for each latent, or [].
        width: maximum number of latents per row.
        scale: [m], see `scores`.
        precision: as for `topk_encode`.

    Returns:
        Values and int64 indices [n, width] in the order of `topk_encode`, padded with zeros, and
        the number of active latents [n] int64, which may exceed `width`.
    """
    all_scores = _scores_at(precision, x, weight, bias, scale)
    active = all_scores > threshold
    counts = active.sum(1)
    ranked = torch.where(active, all_scores, -torch.inf)
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :width]
    there = torch.arange(width, device=x.device) < counts[:, None]
    values = torch.where(there, all_scores.gather(1, order), 0.0).to(x.dtype)
    return ThresholdCode(values, torch.where(there, order, 0), counts)


def keep_of_batch(
    values: Tensor, indices: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the `wanted` largest positive values of a batch; ties are broken by memory order.

    Args:
        values: [n, w], descending within each row.
        indices: [n, w] int64.
        wanted: number of values to keep in the whole batch.

    Returns:
        Values and indices [n, w] with zeros in place of discarded entries, the number of values
        kept in each row [n] int64, and the smallest value kept [], 0 if none is.
    """
    flat = values.flatten()
    order = flat.sort(descending=True, stable=True).indices[:wanted]
    kept = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, order, True).view_as(values)
    kept &= values > 0
    smallest = torch.where(kept, values, torch.inf).flatten()
    smallest = torch.cat([smallest, smallest.new_full((1,), torch.inf)]).amin()
    return (
        torch.where(kept, values, 0.0),
        torch.where(kept, indices, 0),
        kept.sum(1),
        torch.where(smallest == torch.inf, 0.0, smallest),
    )


def sparse_decode(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Decode a sparse code: sum_c values[:, c] * weight[indices[:, c]] + bias.

    Args:
        values: [n, k] values of the code.
        indices: [n, k] int64, rows of `weight`.
        weight: [m, d] decoder rows.
        bias: [d]; None adds nothing.

    Returns:
        [n, d] in the dtype of `values`.
    """
    out = torch.einsum("nk,nkd->nd", _computed(values), _computed(weight)[indices])
    if bias is not None:
        out = out + _computed(bias)
    return out.to(values.dtype)


def gather_dots(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Compute the dot products rows[i] . weight[indices[i, c]].

    Args:
        rows: [n, d] first factors.
        weight: [m, d] second factors.
        indices: [n, k] int64, rows of `weight`.

    Returns:
        [n, k] in the dtype of `rows`.
    """
    dots = torch.einsum("nd,nkd->nk", _computed(rows), _computed(weight)[indices])
    return dots.to(rows.dtype)


def latent_sum(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """Sum values[i, c] * rows[i] for each latent over the entries with indices[i, c] = latent.

    Args:
        values: [n, k] values of a code.
        indices: [n, k] int64, latents.
        rows: [n, d] rows.
        latents: number of latents m.

    Returns:
        [m, d] in the dtype of `rows`.
    """
    terms = _computed(values)[..., None] * _computed(rows)[:, None, :]
    sums = terms.new_zeros(latents, rows.shape[1])
    return sums.index_add(0, indices.flatten(), terms.flatten(0, 1)).to(rows.dtype)


def decode_residual(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode a code and compute the error, the gradients of values and the squared error.

    Args:
        values: [n, k] values of the code.
        indices: [n, k] int64, rows of `weight`.
        weight: [m, d] decoder rows.
        bias: [d]; None adds nothing.
        target: [n, d] rows to reconstruct.
        factor: factor of the residual.

    Returns:
        The residual factor * (decoded - target) [n, d]; its dot product with the decoder row of
        each value that is not zero, zero for other values, [n, k]; and the sum of squares of
        decoded - target, [] float64.
    """
    error = sparse_decode(values, indices, weight, bias) - target
    residual = error * factor
    value_grads = torch.where(values != 0, gather_dots(residual, weight, indices), 0.0)
    return residual, value_grads, error.double().square().sum()


def decode_prefixes(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    group_ends: Tensor,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the errors of the reconstructions by nested prefixes of the latents (Matryoshka).

    Prefix i consists of the latents below group_ends[i]; group i consists of the latents of prefix
    i that are not in prefix i - 1. The error of a prefix is its reconstruction minus the target.

    Args:
        values: [n, k] values of the code.
        indices: [n, k] int64, rows of `weight`.
        weight: [m, d] decoder rows.
        bias: [d]; None adds nothing.
        target: [n, d] rows to reconstruct.
        group_ends: [g] int64, ascending.
        factor: factor of the residuals.

    Returns:
        For each group, factor * the sum of the errors of all prefixes that contain it, [g, n, d],
        from which its latents learn; for each value that is not zero the dot product of its decoder
        row with that sum, zero for other values, [n, k]; and the sum of squares of each prefix's
        error, [g] float64.
    """
    active = values != 0
    group = torch.searchsorted(group_ends, indices.contiguous(), right=True)
    errors = torch.stack(
        [
            sparse_decode(values * (active & (group <= g)), indices, weight, bias) - target
            for g in range(len(group_ends))
        ]
    )
    residual = errors.flip(0).cumsum(0).flip(0) * factor
    value_grads = torch.zeros_like(values)
    for g, rows in enumerate(residual):
        dots = gather_dots(rows, weight, indices)
        value_grads = torch.where(active & (group == g), dots, value_grads)
    return residual, value_grads, errors.double().square().sum((1, 2))


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
        parameter: the weight; updated.
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
        gradients: gradients of w_enc, b_enc and w_dec.
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
    """Scale every row of `weight` [m, d] to norm one, in place; rows of zeros are unchanged."""
    norm = weight.norm(dim=1, keepdim=True)
    weight.div_(torch.where(norm > 0, norm, 1.0))


def keep_largest(scores: Tensor, k: int, *, signed: bool, absolute: bool = False) -> None:
    """Set all but the k largest scores of each row to zero, in place.

    Args:
        scores: [n, m]; of equal scores those with lower indices are kept.
        k: number of scores to keep per row.
        signed: whether negative scores may be kept; scores of -infinity never are.
        absolute: whether scores are ranked by their absolute value, see `sizes`.
    """
    ranks = sizes(scores) if absolute else scores
    order = torch.sort(ranks, dim=1, descending=True, stable=True).indices[:, :k]
    stays = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    stays &= scores > (-torch.inf if signed else 0.0)
    scores.masked_fill_(~stays, 0.0)
