"""Every op in plain torch: the definition of correct, for any dtype and device.

Nothing here is fast, and nothing here hides a choice: ties, the place of the bias and the order
of Adam's steps are what the other implementations are tested against.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saefast.types import NO_DECAY, Decay, Learned, SparseCode, ThresholdCode, Update


def _computed(tensor: Tensor) -> Tensor:
    """Half-precision tensors are computed in float32 and rounded once, at the end."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def scores(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """(x @ weight.T + bias) * scale, an [n, m] matrix."""
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
) -> SparseCode:
    """The k largest scores per row: value descending, equal values by lower index.

    `precision="bf16"` rounds x and weight * scale to bfloat16 and nothing else.
    """
    all_scores = _scores_at(precision, x, weight, bias, scale)
    order = torch.sort(all_scores, dim=1, descending=True, stable=True).indices[:, :k]
    return SparseCode(all_scores.gather(1, order).to(x.dtype), order)


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
    """The scores above their latent's threshold, [m] or []; of a row's, the `width` largest.

    Ordered as in `topk_encode`; rows with fewer are filled with zeros.
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
    """The `wanted` largest positive values of a batch [n, w]; of equal ones the first in memory.

    Values descend within each row. Returns values and indices [n, w] with zeros for what is not
    kept, how many of each row are kept [n] int64, and the smallest value kept [], 0 if there is
    none.
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
    """sum_c values[:, c] * weight[indices[:, c]] + bias, [n, d]."""
    out = torch.einsum("nk,nkd->nd", _computed(values), _computed(weight)[indices])
    if bias is not None:
        out = out + _computed(bias)
    return out.to(values.dtype)


def gather_dots(rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """rows[i] . weight[indices[i, c]], [n, k]."""
    dots = torch.einsum("nd,nkd->nk", _computed(rows), _computed(weight)[indices])
    return dots.to(rows.dtype)


def latent_sum(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """For each latent the sum of values[i, c] * rows[i] where indices[i, c] names it, [m, d]."""
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
    """The scaled error of a reconstruction, its products with the active rows, and its square.

    Returns factor * (decoded - target) [n, d]; its product with each active decoder row where the
    value is positive, zero elsewhere, [n, k]; and the sum of squares of decoded - target.
    """
    error = sparse_decode(values, indices, weight, bias) - target
    residual = error * factor
    value_grads = torch.where(values > 0, gather_dots(residual, weight, indices), 0.0)
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
    """The errors of the reconstructions by nested prefixes of the latents.

    Prefix i holds the latents below group_ends[i]; group i is what prefix i has and prefix i - 1
    has not. An error is what a prefix decodes to, less the target.

    Returns for each group factor * the sum of the errors of all prefixes that hold it, [g, n, d]:
    what its latents learn from; for each positive value the product of its decoder row with that
    sum, zero elsewhere, [n, k]; and the sum of squares of each prefix's error, float64 [g].
    """
    active = values > 0
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
    """What Adam's corrections make of the learning rate at a step, counted from 1: float64 [2].

    The size of the step, and the root by which the square roots of second moments are divided.
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
    """One step of torch.optim.Adam on one tensor, in place; `rates` are those of `adam_rates`."""
    step_size, root = rates.to(parameter.dtype)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameter.sub_(step_size * (first / (second.sqrt() / root + eps)))


def count_idle(idle: Tensor, fired: Tensor, tokens: int) -> None:
    """Add `tokens` to the tokens since each latent fired, in place; zero where `fired` is not."""
    idle += tokens
    idle.masked_fill_(fired > 0, 0)


def latent_gradients(update: Update) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """The gradients of w_enc, b_enc and w_dec from what a forward pass left.

    Returns them; then the gradient of the encoder's inputs summed over tokens [d], and on how many
    tokens each latent fired [m].
    """
    indices, latents = update.indices, len(update.b_enc)
    active = update.values > 0
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
    """What is done to the gradients of w_enc, b_enc and w_dec, in place; see `Update`."""
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
    """Adam on w_enc, b_enc and w_dec from what a forward pass left, in place; see `Update`.

    The packed weight is left alone. Returns the gradient of the encoder's inputs summed over tokens
    [d], and on how many tokens each latent fired [m].
    """
    gradients, input_grad_sum, fired = latent_gradients(update)
    beta1, beta2, eps, rates = update.beta1, update.beta2, update.eps, update.rates
    for learned, gradient in _that_learn(update, gradients):
        adam(*learned, gradient, rates, beta1=beta1, beta2=beta2, eps=eps)
    if update.unit_norm and update.update_decoder:
        normalise_rows(update.w_dec)
    return input_grad_sum, fired


def gradient_squares(update: Update) -> tuple[Tensor, Tensor]:
    """The length of what `latent_update` would hand to Adam.

    Returns the gradient of the encoder's inputs summed over tokens [d], and the squared length of
    each latent's gradients, float64 [m].
    """
    gradients, input_grad_sum, _ = latent_gradients(update)
    squares = update.b_enc.new_zeros(update.b_enc.shape, dtype=torch.float64)
    for _, gradient in _that_learn(update, gradients):
        squares += gradient.double().reshape(len(squares), -1).square().sum(1)
    return input_grad_sum, squares


def _that_learn(update: Update, gradients: Sequence[Tensor]) -> Iterator[tuple[Learned, Tensor]]:
    """The parameters that are not frozen, with their gradients."""
    learned = (update.encoder, update.bias, update.decoder)
    learns = (update.update_encoder, True, update.update_decoder)
    return itertools.compress(zip(learned, gradients, strict=True), learns)


def normalise_rows(weight: Tensor) -> None:
    """Give every row norm one, in place; rows of zeros stay."""
    norm = weight.norm(dim=1, keepdim=True)
    weight.div_(torch.where(norm > 0, norm, 1.0))


def keep_largest(scores: Tensor, k: int, *, signed: bool) -> None:
    """Set to zero, in place, what is not among the k largest scores of its row.

    Of equal scores those with lower indices stay. Unless `signed`, only positive scores stay; those
    of -infinity never do.
    """
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    stays = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    stays &= scores > (-torch.inf if signed else 0.0)
    scores.masked_fill_(~stays, 0.0)
