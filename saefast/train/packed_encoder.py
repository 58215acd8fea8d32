"""The weights of an SAE in training as its forward pass uses them, packed from step to step."""

from functools import partial

import torch
from torch import Tensor

from saefast.ops.batch_topk import BatchCode, batch_topk
from saefast.ops.encode_packed import (
    Packed,
    encode_packed,
    encode_scaled,
    repacked,
    threshold_packed,
)
from saefast.ops.threshold_encode import all_above
from saefast.sae import SAE
from saefast.types import SparseCode, ThresholdCode


class PackedEncoder:
    """Encode with the weights as they are, packed again where others than the step changed them."""

    def __init__(self, sae: SAE, precision: str, *, rounded_decoder: bool = False) -> None:
        self.sae, self.precision = sae, precision
        self._rounded_decoder = rounded_decoder
        self.packed: Packed | None = None
        self._version = -1

    @property
    def decoder(self) -> Tensor:
        """The decoder as the forward pass multiplies it."""
        weight = self.sae.W_dec
        return weight.bfloat16().to(weight.dtype) if self._rounded_decoder else weight

    @property
    def fresh(self) -> bool:
        """Whether the packed weights are those of the SAE."""
        return self._version == self.sae.W_enc._version

    def refreshed(self) -> None:
        """Says that an update has just packed what it wrote."""
        self._version = self.sae.W_enc._version

    def forget(self) -> None:
        """Says that the weights are others now."""
        self._version = -1

    def largest(self, inputs: Tensor, k: int, scale: Tensor | None = None) -> SparseCode:
        """The k largest pre-activations of each row, chosen by their size times `scale` [m]."""
        sae = self.sae
        if scale is not None:
            code = encode_scaled(inputs, sae.W_enc, sae.b_enc, scale, k, self.precision)
            chosen = scale[code.indices]
            values = torch.where(chosen > 0, code.values / chosen, 0.0)
            return SparseCode(values, code.indices)
        self._pack(inputs, k)
        return encode_packed(inputs, sae.W_enc, sae.b_enc, k, self.precision, self.packed)

    def largest_of_batch(
        self, inputs: Tensor, k: int, guess: Tensor | None, width: int
    ) -> BatchCode:
        """See `batch_topk`."""
        sae = self.sae
        self._pack(inputs, k)
        return batch_topk(
            inputs,
            sae.W_enc,
            sae.b_enc,
            k,
            guess=guess,
            width=width,
            precision=self.precision,
            packed=self.packed,
        )

    def above_in(self, width: int, inputs: Tensor, threshold: Tensor) -> ThresholdCode:
        """All latents above their threshold, as far as there is room for `width` in a row.

        Does not wait for a GPU: `counts` on the device say whether there was room for all.
        """
        sae = self.sae
        self._pack(inputs, sae.k)
        width = min(width, sae.m)
        return threshold_packed(
            inputs, sae.W_enc, sae.b_enc, threshold, width, self.precision, self.packed
        )

    def above(self, inputs: Tensor, threshold: Tensor, width: int) -> ThresholdCode:
        """All latents above their threshold; at first there is room for `width` in a row."""
        return all_above(
            partial(self.above_in, inputs=inputs, threshold=threshold), width, self.sae.m
        )

    def _pack(self, inputs: Tensor, k: int) -> None:
        weight = self.sae.W_enc
        self.packed = repacked(self.packed, self.fresh, inputs, weight, k, self.precision)
        self.refreshed()
