"""Interface between objectives and the step: the code, and the gradients that updates need."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from torch import Tensor

from saefast.sae import SAE
from saefast.train.packed_encoder import PackedEncoder
from saefast.types import SparseCode


class Current(NamedTuple):
    """Scheduled settings of one step."""

    k: int
    """number of active latents per token"""
    pressure: float | Tensor = 1.0
    """share of the sparsity penalty that is applied, from 0 to 1; on a GPU a float64 tensor [], so
    that a captured step reads the value at the time of its replay"""


class Encoded(NamedTuple):
    """Result of the encode of a step, with all that the rest of the step needs."""

    code: SparseCode
    """listed latents of each row, with zeros as padding"""
    counts: Tensor | None = None
    """[n] int64, number of latents listed in each row; None if it is constant"""
    threshold: Tensor | None = None
    """[] smallest value kept of the batch, 0 if none was"""
    report: Tensor | None = None
    """[r] int64 on a GPU, values that `Objective.fits` must check before the code is used; None if
    the code is always complete"""


class Forward(NamedTuple):
    """Forward pass over a batch of n rows, and the gradients of its loss."""

    code: SparseCode
    """values are zero where a latent is not active, and in padding"""
    residual: Tensor
    """[n, d_out] gradient of the loss with respect to the reconstruction, or [g, n, d_out] with
    one for each group"""
    value_grads: Tensor
    """[n, w] gradient of the loss with respect to each value"""
    squares: Tensor
    """[] float64, squared error of the whole reconstruction"""
    loss: Tensor
    """[] float64, the loss"""
    group_ends: Tensor | None = None
    """[g] ends of the groups of latents; None without groups"""
    shrink_dec: Tensor | None = None
    """[m] multiple of each decoder row that is added to its gradient; None: zero"""
    threshold_gradient: Tensor | None = None
    """[m] gradient of the loss with respect to `jump_threshold`; None for other variants"""


class Loss(NamedTuple):
    """Loss for autograd, with the statistics to report."""

    value: Tensor
    """[] the loss, to be differentiated"""
    squares: Tensor
    """[] squared error of the whole reconstruction"""
    error: Tensor
    """[n, d_out] target - reconstruction"""
    fired: Tensor
    """[m] number of rows on which each latent is active"""


class FusedPath(Enum):
    """When the steps of an objective take the fused path instead of autograd."""

    ALWAYS = "always"
    WHEN_SPARSE = "when codes are sparse"
    NEVER = "never"


class Objective(Protocol):
    """Computes gradients of a batch. An object serves one SAE and may keep state between steps.

    On the fused path a step calls `encode`, then `forward`. The only wait for a GPU is between the
    two: if `Encoded.report` is a tensor, the host reads it, and repeats the encode by `encode_all`
    if `fits` returns that room was lacking. Neither `encode` nor `forward` waits.
    """

    fused: FusedPath
    """when steps take the fused path"""

    @property
    def room(self) -> int | None:
        """Capacity of `encode` in latents per row on a GPU; None if k determines it."""
        ...

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """Encode a batch, on a GPU with capacity `room`.

        Args:
            encoder: encoder of the SAE.
            inputs: [n, d] the encoder's inputs.
            now: settings of the step.

        Returns:
            The code, with a report if it may be incomplete.
        """
        ...

    def fits(self, report: Sequence[int]) -> bool:
        """Return whether an encode with this report is complete, and adapt `room`.

        Args:
            report: values of `Encoded.report`.
        """
        ...

    def encode_all(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """Encode a batch with as much capacity as needed; waits for the device.

        Args:
            encoder: encoder of the SAE.
            inputs: [n, d] the encoder's inputs.
            now: settings of the step.

        Returns:
            The complete code.
        """
        ...

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """Reconstruct a batch from its code, by the fused ops.

        Args:
            encoder: encoder of the SAE.
            encoded: result of `encode` or `encode_all`.
            target: [n, d_out] rows to reconstruct.
            now: settings of the step.

        Returns:
            The loss and its gradients with respect to the values and the reconstruction.
        """
        ...

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """Compute the loss by dense products for autograd: the definition of `forward`.

        Args:
            sae: the SAE.
            x: [n, d] rows.
            target: [n, d_out] rows to reconstruct.
            now: settings of the step.

        Returns:
            The loss, to be differentiated, with statistics.
        """
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """State that results depend on; it is restored by copying into these tensors."""
        ...
