"""Gradient, Adam and renormalisation of every latent in one pass; no gradient is ever stored."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops import gpu
from saefast.ops.cpu import address, contiguous, dtype_name, native, threads
from saefast.ops.update_operands import MUTATED, Update, check, check_packed, schema


@torch.library.custom_op("saefast::latent_update", mutates_args=MUTATED, schema=schema(MUTATED))
def latent_update(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See `Update` and `reference.latent_update`.

    The CPU's kernel and the GPU's do everything in one pass over the latents and store no gradient
    of a matrix. On a GPU only float64 is computed by the reference. There nothing looks at the
    order of `group_ends`, because the host would have to wait: latents beyond the last end belong
    to the last group.

    Returns the gradient of `inputs` summed over tokens [d], and on how many tokens each latent's
    value was positive [m].
    """
    update = Update(*arguments)
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return _by_reference(update)


@torch.library.custom_op("saefast::gradient_squares", mutates_args=(), schema=schema(()))
def gradient_squares(*arguments: Any) -> tuple[Tensor, Tensor]:
    """What `latent_update` with these arguments would apply, without applying it.

    Returns the gradient of `inputs` summed over tokens [d], and the squared length of all that
    each latent's weights would be updated by, float64 [m].
    """
    update = Update(*arguments)
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return _squares_by_reference(update)


def _by_reference(update: Update) -> tuple[Tensor, Tensor]:
    return reference.latent_update(
        *update[:5],
        update.parameters,
        update.moments,
        update.extra,
        update.rates,
        beta1=update.beta1,
        beta2=update.beta2,
        eps=update.eps,
        unit_norm=update.unit_norm,
        remove_parallel=update.remove_parallel,
        update_encoder=update.update_encoder,
        update_decoder=update.update_decoder,
        decay=update.decay,
        factor=update.factor,
        group_ends=update.group_ends,
    )


def _squares_by_reference(update: Update) -> tuple[Tensor, Tensor]:
    gradients, input_grad_sum, _ = reference.latent_gradients(
        *update[:5],
        update.parameters,
        update.extra,
        project=update.unit_norm and update.remove_parallel,
        decay=update.decay,
        factor=update.factor,
        group_ends=update.group_ends,
    )
    squares = update.b_enc.new_zeros(update.b_enc.shape, dtype=torch.float64)
    updated = (update.update_encoder, True, update.update_decoder)
    for gradient, counts in zip(gradients, updated, strict=True):
        if counts:
            squares += gradient.double().reshape(len(squares), -1).square().sum(1)
    return input_grad_sum, squares


@latent_update.register_kernel("cpu")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)
    fired = torch.empty(update.w_enc.shape[0], dtype=torch.int64)
    return _on_cpu(update, fired, None), fired


@gradient_squares.register_kernel("cpu")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)
    m = update.w_enc.shape[0]
    squares = torch.empty(m, dtype=torch.float64)
    return _on_cpu(update, torch.empty(m, dtype=torch.int64), squares), squares


def _on_cpu(update: Update, fired: Tensor, squares: Tensor | None) -> Tensor:
    """Fills `fired`, and `squares` instead of updating; returns the sum of input gradients."""
    check(update)
    n, k = update.indices.shape
    m, d = update.w_enc.shape
    check_packed(update, (native.panel_units(update.product, d, m),))
    # Held here, so that the copies of what was not contiguous live as long as their addresses.
    left = [contiguous(tensor) for tensor in update[:5]]
    extra = [contiguous(tensor) for tensor in update.extra or ()]
    ends = torch.tensor([m]) if update.group_ends is None else contiguous(update.group_ends)
    step_size, root = update.rates.tolist()
    sign_enc, sign_dec = (0.0, 0.0) if update.sign is None else update.sign.tolist()
    input_grad_sum = update.w_enc.new_empty(d)
    indices, values, value_grads, residual, inputs = left
    latents, *gradients = extra or (None, None, None, None)
    units, norm, lost = (None, None, None) if squares is not None else update[14:17]
    native.latent_update(
        dtype_name(update.w_enc),
        address(indices),
        address(values),
        address(value_grads),
        address(residual),
        address(inputs),
        n,
        k,
        d,
        m,
        update.w_dec.shape[1],
        address(ends),
        len(ends),
        address(update.w_enc),
        address(update.b_enc),
        address(update.w_dec),
        (address(update.w_enc_first), address(update.w_enc_second)),
        (address(update.b_enc_first), address(update.b_enc_second)),
        (address(update.w_dec_first), address(update.w_dec_second)),
        address(latents),
        0 if latents is None else latents.shape[0],
        address(gradients[0]),
        address(gradients[1]),
        address(gradients[2]),
        step_size,
        root,
        update.beta1,
        update.beta2,
        update.eps,
        update.unit_norm,
        update.remove_parallel,
        update.update_encoder,
        update.update_decoder,
        address(update.shrink_enc),
        address(update.shrink_dec),
        sign_enc,
        sign_dec,
        1.0 if update.factor is None else float(update.factor),
        address(input_grad_sum),
        address(fired),
        address(squares),
        update.product,
        address(units),
        address(norm),
        address(lost),
        threads(),
    )
    return input_grad_sum


@latent_update.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)
    if not gpu.serves(update.w_enc):
        check(update)
        return _by_reference(update)
    check_on_gpu(update)
    with gpu.device_of(update.w_enc):
        updated: tuple[Tensor, Tensor] = on_gpu(update).update(update.factor)
    return updated


@gradient_squares.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)
    check(update)
    if not gpu.serves(update.w_enc):
        return _squares_by_reference(update)
    with gpu.device_of(update.w_enc):
        measured: tuple[Tensor, Tensor] = on_gpu(update).squares(update.factor)
    return measured


def check_on_gpu(update: Update) -> None:
    """Check all operands of an update by the kernels."""
    check(update)
    m, d = update.w_enc.shape
    check_packed(update, (m, gpu.kernels("round_rows").padded_width(d)))


def on_gpu(update: Update) -> Any:
    """Make the `LatentPass` of saefast.kernels, which takes `factor` when it runs."""
    kernels = gpu.kernels("latent_update")
    left, moments, decay = map(contiguous, update[:5]), update.moments, update.decay
    ends, sign = (t if t is None else contiguous(t) for t in (update.group_ends, decay.sign))
    return kernels.LatentPass(
        kernels.Batch(*left, ends),
        kernels.Parameter(update.w_enc, *moments[:2]),
        kernels.Parameter(update.b_enc, *moments[2:4]),
        kernels.Parameter(update.w_dec, *moments[4:]),
        update.update_encoder,
        update.update_decoder,
        kernels.Extra(*map(contiguous, update.extra)) if update.extra else None,
        kernels.Shaping(
            decay.shrink_enc,
            decay.shrink_dec,
            sign,
            update.unit_norm and update.remove_parallel,
        ),
        kernels.AdamSettings(contiguous(update.rates), update.beta1, update.beta2, update.eps),
        update.unit_norm,
        (update.product, *update.packed) if update.packed else None,
    )


def _fake(dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    def fake(*arguments: Any) -> tuple[Tensor, Tensor]:
        w_enc = Update(*arguments).w_enc
        m, d = w_enc.shape
        return w_enc.new_empty(d), w_enc.new_empty(m, dtype=dtype)

    return fake


latent_update.register_fake(_fake(torch.int64))
gradient_squares.register_fake(_fake(torch.float64))
