"""Products of a batch with an SAE in training, whose encoder stays packed from step to step."""

from functools import partial

import torch
from torch import Tensor

from saefast.ops.batch_topk import BatchCode, largest_of_batch
from saefast.ops.decode_prefixes import decode_prefixes
from saefast.ops.decode_residual import decode_residual
from saefast.ops.encode_packed import (
    Packed,
    encode_packed,
    encode_scaled,
    repacked,
    threshold_packed,
)
from saefast.ops.latent_sum import column_sum
from saefast.ops.row_norms import row_norms
from saefast.ops.threshold_encode import all_above
from saefast.sae import SAE
from saefast.types import SparseCode, ThresholdCode


class PackedEncoder:
    """Encoder with packed weights, which are repacked if anything but the step changed them.

    The products with the decoder are here as well, so that a `SharedEncoder` can replace all that
    depends on which rows and columns of the weights are on this rank.
    """

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
        code = self._ranked(inputs, k, scale, absolute=absolute)
        if scale is None:
            return code
        chosen = scale[code.indices]
        return SparseCode(torch.where(chosen > 0, code.values / chosen, 0.0), code.indices)

    def _ranked(
        self, inputs: Tensor, k: int, scale: Tensor | None, *, absolute: bool
    ) -> SparseCode:
        """Return the k largest of the pre-activations times `scale`."""
        weight, bias, precision = self.sae.W_enc, self.sae.b_enc, self.precision
        if scale is not None:
            return encode_scaled(inputs, weight, bias, scale, k, precision, absolute=absolute)
        self._pack(inputs, k)
        return encode_packed(inputs, weight, bias, k, precision, self.packed, absolute=absolute)

    def largest_of_batch(
        self, inputs: Tensor, k: int, guess: Tensor | None, width: int
    ) -> BatchCode:
        """Return the n * k largest positive pre-activations of a batch, see `batch_topk`."""
        return largest_of_batch(
            lambda limit, room: self.above_in(room, inputs, limit, len(inputs) * k),
            lambda number: self.largest(inputs, min(number, self.sae.m)).values,
            len(inputs),
            k,
            guess=guess,
            width=width,
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

    def residual(
        self, code: SparseCode, target: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return residual, gradients of the values and squares, see `decode_residual`."""
        residual, value_grads, squares = decode_residual(
            *code, self.decoder, self.sae.b_dec, target, factor
        )
        return residual, value_grads, squares

    def prefixes(
        self, code: SparseCode, target: Tensor, group_ends: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return residuals, gradients of the values and squares, see `decode_prefixes`."""
        residual, value_grads, squares = decode_prefixes(
            *code, self.decoder, self.sae.b_dec, target, group_ends, factor
        )
        return residual, value_grads, squares

    def decoder_dots(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Return the dots of rows [n, d_out] with W_dec[indices], [n, k]; see `gather_dots`."""
        dots: Tensor = torch.ops.saefast.gather_dots(rows, self.sae.W_dec, indices)
        return dots

    def decoder_norms(self) -> Tensor:
        """Return the norms of the decoder rows, [m]."""
        return row_norms(self.sae.W_dec)

    def column_sum(self, residual: Tensor) -> Tensor:
        """Return the sum of residuals over rows, [d_out]."""
        return column_sum(residual)

    def _pack(self, inputs: Tensor, k: int) -> None:
        weight = self.sae.W_enc
        self.packed = repacked(self.packed, self.fresh, inputs, weight, k, self.precision)
        self.refreshed()
