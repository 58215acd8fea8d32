"""Gradient, Adam and renormalisation of every latent in one pass; no gradient is ever stored."""

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import checks
from saefast.ops.cpu import address, contiguous, dtype_name, native, threads

_STATE = (
    "w_enc",
    "b_enc",
    "w_dec",
    "w_enc_first",
    "w_enc_second",
    "b_enc_first",
    "b_enc_second",
    "w_dec_first",
    "w_dec_second",
)


@torch.library.custom_op("saefast::latent_update", mutates_args=(*_STATE, "units", "norm", "lost"))
def latent_update(
    indices: Tensor,
    values: Tensor,
    value_grads: Tensor,
    residual: Tensor,
    inputs: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    w_enc_first: Tensor,
    w_enc_second: Tensor,
    b_enc_first: Tensor,
    b_enc_second: Tensor,
    w_dec_first: Tensor,
    w_dec_second: Tensor,
    units: Tensor | None,
    norm: Tensor | None,
    lost: Tensor | None,
    product: str,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    unit_norm: bool,
) -> tuple[Tensor, Tensor]:
    """Update the encoder and decoder in place from what a forward pass left.

    Args:
        indices, values: [n, k] the code.
        value_grads: [n, k] the loss's gradient by each value; zero where the value is not positive.
        residual: [n, d] the loss's gradient by the reconstruction.
        inputs: [n, d] what the encoder multiplied.
        w_enc, b_enc, w_dec: [m, d], [m], [m, d], each followed by its first and second moment.
        units, norm, lost: w_enc as `PackedWeight` for the native screen `product`, refreshed.
        step: of Adam, from 1.
        unit_norm: decoder rows have norm one; the gradient's part along them is removed first.

    Returns:
        The gradient of `inputs` summed over tokens [d], and on how many tokens each latent's value
        was positive [m].
    """
    checks.in_range("indices", indices, w_enc.shape[0])
    return reference.latent_update(
        indices,
        values,
        value_grads,
        residual,
        inputs,
        (w_enc, b_enc, w_dec),
        (
            w_enc_first,
            w_enc_second,
            b_enc_first,
            b_enc_second,
            w_dec_first,
            w_dec_second,
        ),
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        step=step,
        unit_norm=unit_norm,
    )


@latent_update.register_kernel("cpu")
def _(
    indices: Tensor,
    values: Tensor,
    value_grads: Tensor,
    residual: Tensor,
    inputs: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    w_enc_first: Tensor,
    w_enc_second: Tensor,
    b_enc_first: Tensor,
    b_enc_second: Tensor,
    w_dec_first: Tensor,
    w_dec_second: Tensor,
    units: Tensor | None,
    norm: Tensor | None,
    lost: Tensor | None,
    product: str,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    unit_norm: bool,
) -> tuple[Tensor, Tensor]:
    state = (
        w_enc,
        b_enc,
        w_dec,
        w_enc_first,
        w_enc_second,
        b_enc_first,
        b_enc_second,
        w_dec_first,
        w_dec_second,
    )
    _check(indices, values, value_grads, residual, inputs, state, (units, norm, lost), product)
    indices, values, value_grads = map(contiguous, (indices, values, value_grads))
    residual, inputs = contiguous(residual), contiguous(inputs)
    n, k = indices.shape
    m, d = w_enc.shape
    input_grad_sum = w_enc.new_empty(d)
    fired = torch.empty(m, dtype=torch.int64)
    native.latent_update(
        dtype_name(w_enc),
        address(indices),
        address(values),
        address(value_grads),
        address(residual),
        address(inputs),
        n,
        k,
        d,
        m,
        address(w_enc),
        address(b_enc),
        address(w_dec),
        (address(w_enc_first), address(w_enc_second)),
        (address(b_enc_first), address(b_enc_second)),
        (address(w_dec_first), address(w_dec_second)),
        lr,
        beta1,
        beta2,
        eps,
        step,
        unit_norm,
        address(input_grad_sum),
        address(fired),
        product,
        address(units),
        address(norm),
        address(lost),
        threads(),
    )
    return input_grad_sum, fired


def _check(
    indices: Tensor,
    values: Tensor,
    value_grads: Tensor,
    residual: Tensor,
    inputs: Tensor,
    state: tuple[Tensor, ...],
    packed: tuple[Tensor | None, ...],
    product: str,
) -> None:
    w_enc = state[0]
    checks.at_least_float32("w_enc", w_enc)
    checks.code(values, indices, w_enc)
    m, d = w_enc.shape
    n = values.shape[0]
    given = {"value_grads": value_grads, "residual": residual, "inputs": inputs}
    shapes = {"value_grads": tuple(values.shape), "residual": (n, d), "inputs": (n, d)}
    for name, tensor in zip(_STATE, state, strict=True):
        checks.writable(name, tensor)
        given[name] = tensor
        shapes[name] = (m,) if name.startswith("b_enc") else (m, d)
    for name, tensor in given.items():
        checks.same_kind("w_enc", w_enc, name, tensor)
        checks.shape(name, tensor, shapes[name])
    if all(part is None for part in packed):
        return
    sizes = (native.panel_units(product, d, m), m, m)
    for name, part, size in zip(("units", "norm", "lost"), packed, sizes, strict=True):
        if part is None:
            raise ValueError("units, norm and lost must be given together or not at all")
        checks.writable(name, part)
        checks.shape(name, part, (size,))


@latent_update.register_fake
def _(
    indices: Tensor,
    values: Tensor,
    value_grads: Tensor,
    residual: Tensor,
    inputs: Tensor,
    w_enc: Tensor,
    *_: object,
) -> tuple[Tensor, Tensor]:
    m, d = w_enc.shape
    return w_enc.new_empty(d), w_enc.new_empty(m, dtype=torch.int64)
