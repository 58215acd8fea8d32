"""Result of a training step."""

from dataclasses import dataclass

from torch import Tensor

from saefast.types import SparseCode


@dataclass(frozen=True)
class StepResult:
    """Loss and statistics of one batch, computed before the weights were updated."""

    loss: Tensor
    """[] float64, loss without the auxiliary loss and penalties on weights"""
    squares: Tensor
    """[] float64, squared error summed over the batch"""
    fired: Tensor
    """[m] number of rows on which each latent was active"""
    auxk: Tensor | None
    """[] auxiliary loss of the dead latents; None if it is disabled"""
    path: str
    """fused or autograd"""
    code: SparseCode | None = None
    """the code of the batch; None on the path of autograd"""
