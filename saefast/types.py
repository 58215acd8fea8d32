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
    """[2] what multiple of the weights' signs the gradients of W_enc and W_dec get"""


NO_DECAY = Decay()


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
