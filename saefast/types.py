"""Define the operands and results of ops, and the `__repr__` of records."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_FEW = 6
"""Maximum number of entries of a sequence or mapping that are printed individually."""


def brief(result: Any) -> str:
    """Format a named tuple or dataclass on one line.

    Tensors are shown as dtype and shape; fields that are None are omitted. Classes use it as their
    `__repr__`.

    Returns:
        The line.
    """
    if dataclasses.is_dataclass(result):
        names = [each.name for each in dataclasses.fields(result) if each.repr]
    else:
        names = list(result._fields)
    values = ((name, getattr(result, name)) for name in names)
    fields = ", ".join(f"{name}={_shown(value)}" for name, value in values if value is not None)
    return f"{type(result).__name__}({fields})"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_meta:
            return _shown(value.item())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        if len(value) > _FEW:
            return f"<{len(value)} entries>"
        return f"{{{', '.join(f'{key!r}: {_shown(its)}' for key, its in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str) and not _is_record(value):
        if value and _is_record(value[0]):
            return f"<{len(value)} {type(value[0]).__name__}>"
        each = [_shown(its) for its in value[:_FEW]]
        if len(value) > 1 and len(set(each)) == 1:
            return f"{len(value)} x {each[0]}"
        return f"[{', '.join(each)}{', ...' * (len(value) > _FEW)}]"
    return repr(value)


def _is_record(value: Any) -> bool:
    return hasattr(value, "_fields") or dataclasses.is_dataclass(value)


class SparseCode(NamedTuple):
    """The active latents of n rows.

    Within a row, values are in descending order, of abstopk by absolute value; equal values are
    ordered by ascending index. Codes of SAEs that select latents by another quantity (gated, or
    `by_norm`) are in the order of that quantity. Rows with fewer active latents than others are
    padded with values and indices of zero.
    """

    values: Tensor
    """[n, k] activations"""
    indices: Tensor
    """[n, k] int64, latents"""

    def __repr__(self) -> str:
        return brief(self)

    def to_dense(self, latents: int) -> Tensor:
        """Return the code as a dense matrix.

        Args:
            latents: number of columns, the number of latents of the SAE.

        Returns:
            [n, latents], zero where a latent is not active.
        """
        dense = self.values.new_zeros(self.values.shape[0], latents)
        # Add instead of writing: padding has index 0, which may also be an active latent.
        return dense.scatter_add(1, self.indices, self.values)


class Decay(NamedTuple):
    """Penalty terms added to the gradients of W_enc and W_dec."""

    shrink_enc: Tensor | None = None
    """[m] multiple of each row of W_enc that is added to the row's gradient"""
    shrink_dec: Tensor | None = None
    """[m] multiple of each row of W_dec that is added to the row's gradient"""
    sign: Tensor | None = None
    """[2] float64, multiples of the signs of W_enc and W_dec that are added to their gradients"""


NO_DECAY = Decay()


class Learned(NamedTuple):
    """A parameter and its Adam moments, all of one shape."""

    weight: Tensor
    first: Tensor
    second: Tensor


class ExtraGradients(NamedTuple):
    """Additional gradients of some latents, such as those of the auxiliary loss."""

    latents: Tensor
    """[c] int64, distinct latents; an entry out of range is ignored, and its gradients may be
    uninitialised"""
    w_enc: Tensor
    """[c, d] gradients of rows of W_enc"""
    b_enc: Tensor
    """[c] gradients of entries of b_enc"""
    w_dec: Tensor
    """[c, d_out] gradients of rows of W_dec"""


class Update(NamedTuple):
    """The operands of `latent_update`; parameters, moments and packing are updated in place.

    The op takes the fields individually, since torch's dispatcher does not support records.
    """

    indices: Tensor
    """[n, k] int64, latents of the code"""
    values: Tensor
    """[n, k] values of the code"""
    value_grads: Tensor
    """[n, k] gradient of the loss with respect to each value; zero where a value is zero"""
    residual: Tensor
    """[n, d_out] gradient of the loss with respect to the reconstruction, or [g, n, d_out] with
    `group_ends`"""
    inputs: Tensor
    """[n, d] inputs of the encoder, see `SAE.inputs`"""
    w_enc: Tensor
    """[m, d] encoder rows"""
    b_enc: Tensor
    """[m] encoder bias"""
    w_dec: Tensor
    """[m, d_out] decoder rows"""
    w_enc_first: Tensor
    """first Adam moment of w_enc; each moment has the shape of its parameter"""
    w_enc_second: Tensor
    b_enc_first: Tensor
    b_enc_second: Tensor
    w_dec_first: Tensor
    w_dec_second: Tensor
    units: Tensor | None
    """with norm and lost: w_enc packed for the screening product `product`; refreshed in place"""
    norm: Tensor | None
    lost: Tensor | None
    product: str
    extra_latents: Tensor | None
    """[c] see `ExtraGradients`"""
    extra_w_enc: Tensor | None
    extra_b_enc: Tensor | None
    extra_w_dec: Tensor | None
    rates: Tensor
    """[2] float64, result of `reference.adam_rates`, on the device"""
    beta1: float
    beta2: float
    eps: float
    unit_norm: bool
    """whether decoder rows are kept at norm one"""
    remove_parallel: bool = True
    """whether, with `unit_norm`, the component of their gradient along them is removed first"""
    update_encoder: bool = True
    """whether w_enc is updated; b_enc always is"""
    update_decoder: bool = True
    """whether w_dec is updated"""
    shrink_enc: Tensor | None = None
    """[m] see `Decay`"""
    shrink_dec: Tensor | None = None
    """[m] see `Decay`. With it or `sign`, even if zero, the component of the decoder's gradient
    along its rows is computed; without both, it is inferred from `value_grads`"""
    sign: Tensor | None = None
    """[2] float64, see `Decay`"""
    factor: Tensor | None = None
    """[] float64, factor of every gradient"""
    group_ends: Tensor | None = None
    """[g] ends of the groups: latents from group_ends[i - 1] up to, not including, group_ends[i]
    learn from residual[i]"""
    multiplier: Tensor | None = None
    """[1] float32, power of two by which rows are multiplied before they are packed as float16"""

    @property
    def encoder(self) -> Learned:
        """W_enc and its moments."""
        return Learned(self.w_enc, self.w_enc_first, self.w_enc_second)

    @property
    def bias(self) -> Learned:
        """b_enc and its moments."""
        return Learned(self.b_enc, self.b_enc_first, self.b_enc_second)

    @property
    def decoder(self) -> Learned:
        """W_dec and its moments."""
        return Learned(self.w_dec, self.w_dec_first, self.w_dec_second)

    @property
    def packed(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The packed encoder (units, norm, lost), or None if it is not given."""
        parts = self.units, self.norm, self.lost
        _given_together("units, norm and lost", parts)
        units, norm, lost = parts
        if units is None or norm is None or lost is None:
            return None
        return units, norm, lost

    @property
    def decay(self) -> Decay:
        """The penalty terms added to the gradients."""
        return Decay(self.shrink_enc, self.shrink_dec, self.sign)

    @property
    def extra(self) -> ExtraGradients | None:
        """The additional gradients, or None if they are not given."""
        parts = self.extra_latents, self.extra_w_enc, self.extra_b_enc, self.extra_w_dec
        _given_together("the extra gradients", parts)
        latents, w_enc, b_enc, w_dec = parts
        if latents is None or w_enc is None or b_enc is None or w_dec is None:
            return None
        return ExtraGradients(latents, w_enc, b_enc, w_dec)

    @property
    def projects(self) -> bool:
        """Whether the component of the decoder's gradient along its rows is removed."""
        return self.unit_norm and self.remove_parallel


def _given_together(what: str, parts: Sequence[Tensor | None]) -> None:
    if any(part is None for part in parts) and not all(part is None for part in parts):
        raise ValueError(f"{what} must be given together or not at all")


class ThresholdCode(NamedTuple):
    """The latents of n rows that are above a threshold, at most `width` of each row.

    Rows with fewer active latents are padded with values and indices of zero.
    """

    values: Tensor
    """[n, width] activations, in the order of `SparseCode`"""
    indices: Tensor
    """[n, width] int64, latents"""
    counts: Tensor
    """[n] int64, number of active latents of each row, which may exceed `width`"""

    def __repr__(self) -> str:
        return brief(self)
