"""What an objective hands to the step: the code, and the gradients that the update needs."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from torch import Tensor

from saefast.sae import SAE
from saefast.train.packed_encoder import PackedEncoder
from saefast.types import SparseCode


class Current(NamedTuple):
    """What schedules make of the settings at one step."""

    k: int
    pressure: float | Tensor = 1.0
    """the part of the sparsity penalty that is applied, from 0 to 1; on a GPU a float64 scalar
    tensor, so that a captured step reads the value of the step at which it is replayed"""


class Encoded(NamedTuple):
    """What the encode of a step found: all that the rest of the step needs of it."""

    code: SparseCode
    counts: Tensor | None = None
    """[n] int64 how many places of each row hold a latent, where that may differ"""
    threshold: Tensor | None = None
    """[] the smallest value kept of the batch, 0 if none was"""
    report: Tensor | None = None
    """int64 [r] on a GPU: what `Objective.fits` must see before the code is used; None where the
    code is complete in any case"""


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


class FusedPath(Enum):
    """When the steps of an objective take the fused path, and not that of autograd."""

    ALWAYS = "always"
    WHEN_SPARSE = "when codes are sparse"
    NEVER = "never"


class Objective(Protocol):
    """Turns a batch into gradients. One object serves one SAE, and may remember what it saw.

    On the fused path a step calls `encode`, then `forward`. Between the two lies the only wait for
    a GPU: where `Encoded.report` is a tensor, the host reads it, and encodes again by `encode_all`
    where `fits` says that places lacked. Neither `encode` nor `forward` waits.
    """

    fused: FusedPath

    @property
    def room(self) -> int | None:
        """For how many latents of a row `encode` has places on a GPU; None where k decides."""
        ...

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """Encode `inputs` [n, d], what the encoder multiplies; on a GPU with `room` places."""
        ...

    def fits(self, report: Sequence[int]) -> bool:
        """Return whether an encode with this report is complete, and adapt `room`."""
        ...

    def encode_all(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """Encode with as many places as are needed; waits for the device."""
        ...

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """Reconstruct `target` [n, d_out] from the code, by the fused ops."""
        ...

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """By dense products and autograd: the definition of what `forward` computes."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What it remembers and results depend on; restored by copying into these tensors."""
        ...
