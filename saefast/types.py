"""The values that functions hand to one another: plain, named, never changed."""

from typing import NamedTuple

from torch import Tensor


class SparseCode(NamedTuple):
    """The active latents of n rows.

    Within a row values descend, and equal values stand in order of their index. Where rows have
    different numbers of active latents, values and indices of zero fill up the shorter ones.
    """

    values: Tensor
    """[n, k]"""
    indices: Tensor
    """[n, k] int64"""

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
