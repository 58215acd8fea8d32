"""Operands of `latent_update` from lists of tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from saefast.ops.update_operands import LEARNED
from saefast.types import Update


def update_of(
    batch: Sequence[Tensor],
    parameters: Sequence[Tensor],
    moments: Sequence[Tensor],
    *,
    packed: Sequence[Tensor | None] = (None, None, None),
    product: str = "float32",
    extra: Sequence[Tensor | None] | None = None,
    **settings: Any,
) -> Update:
    """Make an update.

    Args:
        batch: indices, values, value gradients, residual and inputs.
        parameters: w_enc, b_enc and w_dec.
        moments: the first and the second of each parameter.
        packed: units, norm and lost.
        product: what they are packed for.
        extra: latents, and gradients for their rows of w_enc, b_enc and w_dec.
        settings: the other fields.
    """
    indices, values, value_grads, residual, inputs = batch
    units, norm, lost = packed
    extra_latents, extra_w_enc, extra_b_enc, extra_w_dec = extra or (None,) * 4
    return Update(
        indices=indices,
        values=values,
        value_grads=value_grads,
        residual=residual,
        inputs=inputs,
        **dict(zip(LEARNED, (*parameters, *moments), strict=True)),
        units=units,
        norm=norm,
        lost=lost,
        product=product,
        extra_latents=extra_latents,
        extra_w_enc=extra_w_enc,
        extra_b_enc=extra_b_enc,
        extra_w_dec=extra_w_dec,
        **settings,
    )
