"""What an objective hands to the step: the code, and the gradients that the update needs."""

from typing import NamedTuple, Protocol

from torch import Tensor

from saefast.packed_encoder import PackedEncoder
from saefast.types import SparseCode


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


class Objective(Protocol):
    """Turns a batch into gradients. One object serves one SAE, and may remember what it saw."""

    def forward(self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, k: int) -> Forward:
        """`inputs` is what the encoder multiplies, `target` what is to be reconstructed."""
        ...
