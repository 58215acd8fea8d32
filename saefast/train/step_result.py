"""What a training step tells of the batch."""

from dataclasses import dataclass

from torch import Tensor

from saefast.types import SparseCode


@dataclass(frozen=True)
class StepResult:
    """What one step saw, before it changed the weights."""

    loss: Tensor
    """float64 [], without the loss of dead latents and without penalties on weights"""
    squares: Tensor
    """the squared error, summed over the batch; float64 []"""
    fired: Tensor
    """[m] on how many rows each latent's value was positive"""
    auxk: Tensor | None
    """the loss of the dead latents, if one was asked for"""
    path: str
    """fused or autograd"""
    code: SparseCode | None = None
    """what was active, on the fused path"""
