"""Define the results of ops, and how records print."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_FEW = 6
"""Entries of a sequence or mapping that are printed one by one."""


def brief(result: Any) -> str:
    """Format a named tuple or dataclass on one line: sizes in place of tensors, no None fields.

    A class uses it as its `__repr__`.
    """
    if dataclasses.is_dataclass(result):
        names = [each.name for each in dataclasses.fields(result) if each.repr]
    else:
        names = list(result._fields)
    values = ((name, getattr(result, name)) for name in names)
    told = ", ".join(f"{name}={_told(value)}" for name, value in values if value is not None)
    return f"{type(result).__name__}({told})"


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_meta:
            return _told(value.item())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        if len(value) > _FEW:
            return f"<{len(value)} entries>"
        return f"{{{', '.join(f'{key!r}: {_told(its)}' for key, its in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str) and not _is_record(value):
        if value and _is_record(value[0]):
            return f"<{len(value)} {type(value[0]).__name__}>"
        each = [_told(its) for its in value[:_FEW]]
        if len(value) > 1 and len(set(each)) == 1:
            return f"{len(value)} x {each[0]}"
        return f"[{', '.join(each)}{', ...' * (len(value) > _FEW)}]"
    return repr(value)


def _is_record(value: Any) -> bool:
    return hasattr(value, "_fields") or dataclasses.is_dataclass(value)


class SparseCode(NamedTuple):
    """The active latents of n rows.

    Within a row values descend, and equal values stand in order of their index. Where rows have
    different numbers of active latents, values and indices of zero fill up the shorter ones.
    """

    values: Tensor
    """[n, k]"""
    indices: Tensor
    """[n, k] int64"""

    def __repr__(self) -> str:
        return brief(self)

    def to_dense(self, latents: int) -> Tensor:
        """The code as an [n, latents] matrix."""
        dense = self.values.new_zeros(self.values.shape[0], latents)
        # Added, not written: what fills up a row are zeros that name latent 0, perhaps again.
        return dense.scatter_add(1, self.indices, self.values)


class Decay(NamedTuple):
    """What the gradients of W_enc and W_dec get besides the data's."""

    shrink_enc: Tensor | None = None
    """[m] what multiple of its own row each latent's gradient gets"""
    shrink_dec: Tensor | None = None
    sign: Tensor | None = None
    """[2] float64: what multiple of the weights' signs the gradients of W_enc and W_dec get"""


NO_DECAY = Decay()


class Learned(NamedTuple):
    """A parameter and its moments of Adam, all of one shape."""

    weight: Tensor
    first: Tensor
    second: Tensor


class ExtraGradients(NamedTuple):
    """Gradients of some latents that come from elsewhere than the code."""

    latents: Tensor
    """[c] int64, each at most once; one out of range stands for none, and its gradients may be
    unset"""
    w_enc: Tensor
    """[c, d]"""
    b_enc: Tensor
    """[c]"""
    w_dec: Tensor
    """[c, d_out]"""


class Update(NamedTuple):
    """The operands of `latent_update`; parameters, their moments and the packing change in place.

    The op takes the fields one by one, since torch's dispatcher knows no records.
    """

    indices: Tensor
    """[n, k] the code"""
    values: Tensor
    value_grads: Tensor
    """[n, k] the loss's gradient by each value; zero where the value is not positive"""
    residual: Tensor
    """[n, d_out] the loss's gradient by the reconstruction, or [g, n, d_out] with `group_ends`"""
    inputs: Tensor
    """[n, d] what the encoder multiplied"""
    w_enc: Tensor
    """[m, d]"""
    b_enc: Tensor
    """[m]"""
    w_dec: Tensor
    """[m, d_out]"""
    w_enc_first: Tensor
    """the moments of Adam, of the shapes of what they belong to"""
    w_enc_second: Tensor
    b_enc_first: Tensor
    b_enc_second: Tensor
    w_dec_first: Tensor
    w_dec_second: Tensor
    units: Tensor | None
    """units, norm, lost: w_enc as the device screens with it, for its `product`; refreshed"""
    norm: Tensor | None
    lost: Tensor | None
    product: str
    extra_latents: Tensor | None
    """[c] see `ExtraGradients`"""
    extra_w_enc: Tensor | None
    extra_b_enc: Tensor | None
    extra_w_dec: Tensor | None
    rates: Tensor
    """[2] float64: `reference.adam_rates`, on the device"""
    beta1: float
    beta2: float
    eps: float
    unit_norm: bool
    """decoder rows have norm one"""
    remove_parallel: bool = True
    """then their gradient's part along them is removed first"""
    update_encoder: bool = True
    """whether w_enc learns; b_enc always does"""
    update_decoder: bool = True
    shrink_enc: Tensor | None = None
    """[m] see `Decay`"""
    shrink_dec: Tensor | None = None
    """[m] see `Decay`. With it or `sign`, even of zero, the part of the decoder's gradient along
    its rows is measured; without, it is inferred from `value_grads`"""
    sign: Tensor | None = None
    """[2] float64: see `Decay`"""
    factor: Tensor | None = None
    """[] float64 multiplies every gradient"""
    group_ends: Tensor | None = None
    """[g] latents below group_ends[i], and not below the end before, learn from residual[i]"""
    multiplier: Tensor | None = None
    """[1] float32: the power of two that multiplies rows before they are packed as float16"""

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
        """Units, norm and lost, if there are any."""
        parts = self.units, self.norm, self.lost
        _given_together("units, norm and lost", parts)
        units, norm, lost = parts
        if units is None or norm is None or lost is None:
            return None
        return units, norm, lost

    @property
    def decay(self) -> Decay:
        """What the gradients get besides the data's."""
        return Decay(self.shrink_enc, self.shrink_dec, self.sign)

    @property
    def extra(self) -> ExtraGradients | None:
        """The extra latents and gradients, if there are any."""
        parts = self.extra_latents, self.extra_w_enc, self.extra_b_enc, self.extra_w_dec
        _given_together("the extra gradients", parts)
        latents, w_enc, b_enc, w_dec = parts
        if latents is None or w_enc is None or b_enc is None or w_dec is None:
            return None
        return ExtraGradients(latents, w_enc, b_enc, w_dec)

    @property
    def projects(self) -> bool:
        """Whether the part of the decoder's gradient along its rows is removed."""
        return self.unit_norm and self.remove_parallel


def _given_together(what: str, parts: Sequence[Tensor | None]) -> None:
    if any(part is None for part in parts) and not all(part is None for part in parts):
        raise ValueError(f"{what} must be given together or not at all")


class ThresholdCode(NamedTuple):
    """The latents of n rows that are above a threshold, as many of them as there was room for.

    A row with fewer than `width` ends in values and indices of zero.
    """

    values: Tensor
    """[n, width]"""
    indices: Tensor
    """[n, width] int64"""
    counts: Tensor
    """[n] int64 how many latents are active, which may be more than `width`"""

    def __repr__(self) -> str:
        return brief(self)
