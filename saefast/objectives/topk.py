"""TopK (Gao et al. 2024): the k largest pre-activations of every row, squared error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.objectives.dense import scores_of, squared_error
from saefast.objectives.forward import Current, Forward, Loss
from saefast.ops.decode_residual import decode_residual
from saefast.packed_encoder import PackedEncoder
from saefast.sae import SAE
from saefast.types import SparseCode


@dataclass
class TopK:
    """The loss is the squared error summed over the width and averaged over rows."""

    rescale: bool = False
    """choose latents by their pre-activation times the norm of their decoder row"""
    fused = "always"

    def forward(
        self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        sae = encoder.sae
        scale = torch.linalg.vector_norm(sae.W_dec, dim=1) if self.rescale else None
        values, indices = encoder.largest(inputs, now.k, scale)
        return of_code(encoder, SparseCode(values.relu(), indices), target)

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        scores = scores_of(sae, x)
        chosen_by = scores * sae.W_dec.detach().norm(dim=1) if self.rescale else scores
        order = chosen_by.sort(dim=1, descending=True, stable=True).indices[:, : now.k]
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
        return squared_error(sae, (scores * kept).relu(), target)

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {}


def of_code(encoder: PackedEncoder, code: SparseCode, target: Tensor) -> Forward:
    """The gradients of the squared error, whatever chose the code."""
    n = len(target)
    residual, value_grads, squares = decode_residual(
        *code, encoder.decoder, encoder.sae.b_dec, target, 2.0 / n
    )
    return Forward(code, residual, value_grads, squares, squares / n)
