"""Gradients that are stored: by autograd, shaped as the fused update shapes its own."""

import torch
from torch import Tensor

from saefast import reference
from saefast.sae import SAE
from saefast.train.auxk import AuxGradients
from saefast.train.rules import Rules, clip_factor

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
    """Add the gradients of the loss of dead latents, in place, without a wait for the device.

    Places of the list that no dead latent takes add zero to some row, each to another one.
    """
    real = extra.latents < sae.m
    rows = torch.where(real, extra.latents, torch.arange(len(real), device=real.device))
    w_enc, w_dec = (torch.where(real[:, None], g, 0.0) for g in (extra.w_enc, extra.w_dec))
    b_enc = torch.where(real, extra.b_enc, 0.0)
    for name, more in zip(_VECTORS, (w_enc, b_enc, w_dec), strict=True):
        gradients[name].index_add_(0, rows, more)
    if sae.centred:
        gradients["b_dec"] -= b_enc @ sae.W_enc[rows]


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
