"""Encoder of an SAE in training, with weights that stay packed from step to step."""

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
    """Encoder with packed weights, which are repacked if anything but the step changed them."""

    def __init__(self, sae: SAE, precision: str, *, rounded_decoder: bool = False) -> None:
        self.sae, self.precision = sae, precision
        self._rounded_decoder = rounded_decoder
        self.packed: Packed | None = None
        self._version = -1

    @property
    def decoder(self) -> Tensor:
        """The decoder [m, d_out] that the forward pass multiplies: rounded to bfloat16 or not."""
        weight = self.sae.W_dec
        return weight.bfloat16().to(weight.dtype) if self._rounded_decoder else weight

    @property
    def fresh(self) -> bool:
        """Whether the packed weights are up to date."""
        return self._version == self.sae.W_enc._version

    def refreshed(self) -> None:
        """Mark the packed weights as up to date, after an update that refreshed them."""
        self._version = self.sae.W_enc._version

    def forget(self) -> None:
        """Mark the packed weights as outdated."""
        self._version = -1

    def largest(
        self, inputs: Tensor, k: int, scale: Tensor | None = None, *, absolute: bool = False
    ) -> SparseCode:
        """Return the k largest pre-activations of each row.

        They are ranked after multiplication by `scale` [m]; by absolute value with `absolute`.
        """
        sae = self.sae
        if scale is not None:
            code = encode_scaled(
                inputs, sae.W_enc, sae.b_enc, scale, k, self.precision, absolute=absolute
            )
            chosen = scale[code.indices]
            values = torch.where(chosen > 0, code.values / chosen, 0.0)
            return SparseCode(values, code.indices)
        self._pack(inputs, k, absolute=absolute)
        return encode_packed(
            inputs, sae.W_enc, sae.b_enc, k, self.precision, self.packed, absolute=absolute
        )

    def largest_of_batch(
        self, inputs: Tensor, k: int, guess: Tensor | None, width: int
    ) -> BatchCode:
        """Return the n * k largest positive pre-activations of a batch, see `batch_topk`."""
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

    def above_in(
        self, width: int, inputs: Tensor, threshold: Tensor, wanted: int | None = None
    ) -> ThresholdCode:
        """Return the latents above their threshold, at most the `width` largest of each row.

        Does not wait for a GPU: `counts`, on the device, show whether there was room for all. See
        `threshold_packed` for `wanted`.
        """
        sae = self.sae
        self._pack(inputs, sae.k)
        width = min(width, sae.m)
        return threshold_packed(
            inputs,
            sae.W_enc,
            sae.b_enc,
            threshold,
            width,
            self.precision,
            self.packed,
            wanted=wanted,
        )

    def above(self, inputs: Tensor, threshold: Tensor, width: int) -> ThresholdCode:
        """Return all latents above their threshold; `width` is the initial capacity per row."""
        return all_above(
            partial(self.above_in, inputs=inputs, threshold=threshold), width, self.sae.m
        )

    def _pack(self, inputs: Tensor, k: int, *, absolute: bool = False) -> None:
        weight = self.sae.W_enc
        self.packed = repacked(
            self.packed, self.fresh, inputs, weight, k, self.precision, absolute=absolute
        )
        self.refreshed()
