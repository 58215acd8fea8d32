"""Gradient, Adam and renormalisation of every latent in one pass over the latents."""

from collections.abc import Callable

import torch
from torch import Tensor

from saefast import checks, reference
from saefast.ops.latent_pass import latent_pass
from saefast.ops.update_operands import MUTATED, by_fields, schema
from saefast.types import Update

_DEVICES = ("cpu", "cuda")


@torch.library.custom_op("saefast::latent_update", mutates_args=MUTATED, schema=schema(MUTATED))
@by_fields
def latent_update(update: Update) -> tuple[Tensor, Tensor]:
    """Apply the update with the given fields; see `Update` and `reference.latent_update`.

    The kernels of CPU and GPU make one pass over the latents and store no gradient of a matrix;
    `latent_pass` may store gradients between measuring and applying them. On a GPU the reference is
    used for float64 only. The order of `group_ends` is not checked on a GPU, since the host would
    have to wait: latents beyond the last end belong to the last group.

    Returns:
        The gradient of `inputs` summed over tokens [d], and the number of tokens on which each
        latent was active [m].
    """
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return reference.latent_update(update)


@torch.library.custom_op("saefast::gradient_squares", mutates_args=(), schema=schema(()))
@by_fields
def gradient_squares(update: Update) -> tuple[Tensor, Tensor]:
    """Compute the squared norms of the gradients that `latent_update` would apply.

    Returns:
        The gradient of `inputs` summed over tokens [d], and the squared norm of each latent's
        gradients, [m] float64.
    """
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return reference.gradient_squares(update)


@latent_update.register_kernel(_DEVICES)
@by_fields
def _(update: Update) -> tuple[Tensor, Tensor]:
    return latent_pass(update).update(update.factor)


@gradient_squares.register_kernel(_DEVICES)
@by_fields
def _(update: Update) -> tuple[Tensor, Tensor]:
    return latent_pass(update).squares()


def _fake(dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    @by_fields
    def fake(update: Update) -> tuple[Tensor, Tensor]:
        m, d = update.w_enc.shape
        return update.w_enc.new_empty(d), update.w_enc.new_empty(m, dtype=dtype)

    return fake


latent_update.register_fake(_fake(torch.int64))
gradient_squares.register_fake(_fake(torch.float64))
