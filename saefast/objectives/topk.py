"""TopK (Gao et al. 2024): the k largest pre-activations of every row, squared error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.objectives.forward import Forward
from saefast.ops.decode_residual import decode_residual
from saefast.packed_encoder import PackedEncoder
from saefast.types import SparseCode


@dataclass
class TopK:
    """The loss is the squared error summed over the width and averaged over rows."""

    rescale: bool = False
    """choose latents by their pre-activation times the norm of their decoder row"""

    def forward(self, encoder: PackedEncoder, inputs: Tensor, target: Tensor, k: int) -> Forward:
        """See `Objective`."""
        sae, n = encoder.sae, target.shape[0]
        scale = torch.linalg.vector_norm(sae.W_dec, dim=1) if self.rescale else None
        values, indices = encoder.largest(inputs, k, scale)
        code = SparseCode(values.relu(), indices)
        residual, value_grads, squares = decode_residual(
            *code, sae.W_dec, sae.b_dec, target, 2.0 / n
        )
        return Forward(code, residual, value_grads, squares, squares / n)
