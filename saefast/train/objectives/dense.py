"""Codes as [n, m] matrices: what the definitions of the objectives share."""

from torch import Tensor

from saefast.sae import SAE
from saefast.train.objectives.forward import Loss


def scores_of(sae: SAE, x: Tensor) -> Tensor:
    """All pre-activations."""
    return sae.inputs(x) @ sae.W_enc.T + sae.b_enc


def squared_error(sae: SAE, acts: Tensor, target: Tensor, penalty: Tensor | float = 0.0) -> Loss:
    """The squared error of what the activations decode to, per row, plus a penalty."""
    error = target - (acts @ sae.W_dec + sae.b_dec)
    squares = error.square().sum()
    value = squares / len(target) + penalty
    return Loss(value, squares.detach(), error.detach(), fired_of(acts))


def fired_of(acts: Tensor) -> Tensor:
    """On how many rows each latent is positive."""
    return (acts > 0).sum(0)
