"""Gradients that are stored: by autograd, shaped as the fused update shapes its own."""

import torch
from torch import Tensor

from saefast import reference
from saefast.auxk import AuxGradients
from saefast.rules import Rules, clip_factor
from saefast.sae import SAE

Gradients = dict[str, Tensor]
"""By the name of the parameter"""

_VECTORS = ("W_enc", "b_enc", "W_dec")


def by_autograd(loss: Tensor, sae: SAE) -> Gradients:
    """Those of all parameters; zero where the loss does not depend on one."""
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient.clone()
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def add_auxk(gradients: Gradients, extra: AuxGradients, sae: SAE) -> None:
    """Add what dead latents learn from their loss, in place."""
    real = extra.latents < sae.m
    latents, b_enc = extra.latents[real], extra.b_enc[real]
    for name, more in zip(_VECTORS, (extra.w_enc[real], b_enc, extra.w_dec[real]), strict=True):
        gradients[name].index_add_(0, latents, more)
    if sae.centred:
        gradients["b_dec"] -= b_enc @ sae.W_enc[latents]


def shaped(gradients: Gradients, sae: SAE, rules: Rules) -> Gradients:
    """What Adam gets of `gradients`, which are overwritten; nothing of a side that is frozen."""
    reference.shape_gradients(
        [gradients[name] for name in _VECTORS],
        [getattr(sae, name) for name in _VECTORS],
        project=rules.unit_norm and rules.remove_parallel,
        decay=rules.decay_of(sae),
    )
    if rules.frozen is not None:
        del gradients["W_enc" if rules.frozen == "encoder" else "W_dec"]
    if rules.clip is None:
        return gradients
    factor = clip_factor(rules.clip, gradients.values())
    return {name: gradient * factor for name, gradient in gradients.items()}
