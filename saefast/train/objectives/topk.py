"""TopK (Gao et al. 2024) and AbsTopK (arXiv 2510.00404): k pre-activations of every row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import gpu
from saefast.sae import SAE, activations
from saefast.train.objectives.dense import scores_of, squared_error
from saefast.train.objectives.forward import Current, Encoded, Forward, FusedPath, Loss
from saefast.train.packed_encoder import PackedEncoder
from saefast.types import SparseCode


@dataclass
class TopK:
    """Squared error summed over the width and averaged over rows.

    Latents are ranked according to `SAE.by_norm`. With `absolute`, they are ranked by absolute
    value and keep their sign; a value of exactly zero is not active and has no gradient.
    """

    absolute: bool = False
    """whether latents are ranked by absolute value, as in AbsTopK"""

    fused = FusedPath.ALWAYS

    room = None

    def encode(self, encoder: PackedEncoder, inputs: Tensor, now: Current) -> Encoded:
        """See `Objective`."""
        sae = encoder.sae
        scale = encoder.decoder_norms() if sae.by_norm else None
        values, indices = encoder.largest(inputs, now.k, scale, absolute=self.absolute)
        return Encoded(SparseCode(activations(values, absolute=self.absolute), indices))

    def fits(self, report: Sequence[int]) -> bool:
        """See `Objective`."""
        return True

    encode_all = encode

    def forward(
        self, encoder: PackedEncoder, encoded: Encoded, target: Tensor, now: Current
    ) -> Forward:
        """See `Objective`."""
        return of_code(encoder, encoded.code, target)

    def loss(self, sae: SAE, x: Tensor, target: Tensor, now: Current) -> Loss:
        """See `Objective`."""
        scores = scores_of(sae, x)
        chosen_by = scores * sae.W_dec.detach().norm(dim=1) if sae.by_norm else scores
        if self.absolute:
            chosen_by = reference.magnitudes(chosen_by)
        order = chosen_by.sort(dim=1, descending=True, stable=True).indices[:, : now.k]
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
        chosen = torch.where(kept & (scores != 0), scores, 0.0)
        return squared_error(sae, activations(chosen, absolute=self.absolute), target)

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return {}


def of_code(encoder: PackedEncoder, code: SparseCode, target: Tensor) -> Forward:
    """Compute the gradients of the squared error for a code whose width the settings fix."""
    n = len(target)
    residual, value_grads, squares = encoder.residual(code, target, 2.0 / n)
    return Forward(code, residual, value_grads, squares, squares / n)


def of_listed(encoder: PackedEncoder, code: SparseCode, target: Tensor) -> Forward:
    """Compute the gradients of the squared error for a code padded with zeros to the capacity.

    On a GPU the bits must not depend on the capacity, nor the time on the padding.

    Returns:
        Loss and gradients of the values.
    """
    if not gpu.has(target):
        return of_code(encoder, code, target)
    n = len(target)
    all_latents = code.indices.new_full((1,), encoder.sae.m)
    residual, value_grads, squares = encoder.prefixes(code, target, all_latents, 2.0 / n)
    return Forward(code, residual[0], value_grads, squares[0], squares[0] / n)
