"""What an objective hands to the step: the code, and the gradients that the update needs."""

from typing import NamedTuple, Protocol

from torch import Tensor

from saefast.packed_encoder import PackedEncoder
from saefast.sae import SAE
from saefast.types import SparseCode


class Current(NamedTuple):
    """What schedules make of the settings at one step."""

    k: int
    pressure: float = 1.0
    """the part of the sparsity penalty that is applied, from 0 to 1"""


class Forward(NamedTuple):
    """One forward pass over a batch of n rows, and the gradients of its loss."""

    code: SparseCode
    """values are not negative; those of zero stand for nothing"""
    residual: Tensor
    """[n, d] the loss's gradient by the reconstruction; with groups [g, n, d], one for each"""
    value_grads: Tensor
    """its gradient by each value"""
    squares: Tensor
    """float64 [] the squared error of the whole reconstruction"""
    loss: Tensor
    """float64 []"""
    group_ends: Tensor | None = None
    shrink_dec: Tensor | None = None
    """[m] what multiple of its decoder row each latent's gradient gets besides"""
    threshold_gradient: Tensor | None = None
    """[m] the loss's gradient by `jump_threshold`"""


class Loss(NamedTuple):
    """The same pass by autograd: what is differentiated, and what is reported."""

    value: Tensor
    """[]"""
    squares: Tensor
    """[] the squared error of the whole reconstruction"""
    error: Tensor
    """[n, d] target - reconstruction"""
    fired: Tensor
    """[m] on how many rows each latent is positive"""


ALWAYS, WHEN_SPARSE, NEVER = "always", "when sparse", "never"


class Objective(Protocol):
    """Turns a batch into gradients. One object serves one SAE, and may remember what it saw."""

    fused: str
    """when `forward` is used: always, when codes are sparse, or never"""

    def forward(
        self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, now: Current
    ) -> Forward:
        """By the fused ops.

        `inputs` is what the encoder multiplies, `target` what is to be reconstructed.
        """
        ...

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """By dense products and autograd: the definition of what `forward` computes."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What it remembers and results depend on; restored by copying into these tensors."""
        ...
