"""Dense [n, m] codes: helpers shared by the autograd definitions of the objectives."""

from torch import Tensor

from saefast.sae import SAE
from saefast.train.objectives.forward import Loss


def scores_of(sae: SAE, x: Tensor) -> Tensor:
    """Return all pre-activations [n, m]."""
    return sae.inputs(x) @ sae.W_enc.T + sae.b_enc


def squared_error(sae: SAE, acts: Tensor, target: Tensor, penalty: Tensor | float = 0.0) -> Loss:
    """Return the squared error of the reconstruction per row, plus a penalty."""
    error = target - (acts @ sae.W_dec + sae.b_dec)
    squares = error.square().sum()
    value = squares / len(target) + penalty
    return Loss(value, squares.detach(), error.detach(), fired_of(acts))


def fired_of(acts: Tensor) -> Tensor:
    """Return the number of rows on which each latent is active, [m]."""
    return (acts != 0).sum(0)
