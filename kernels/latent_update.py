"""Gradient, Adam and unit norm of every latent in one pass over its rows; no gradient is stored."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .by_latent import ByLatent, sort_by_latent
from .device import LAUNCH, interpreting, power_of_two, thread_registers
from .extra_gradients import Extra, Slots, slots_of
from .latent_sum import Groups, entry_blocks, partial_sums
from .round_rows import DROPPED_BITS
from .update_biases import update_biases
from .update_rows import update_rows

_TOGETHER = 16
"""Latents of one program, which sums their shares of the inputs' gradient into one row of memory;
a multiple of it where more than `_PROGRAMS` programs would need that many rows."""
_PROGRAMS = 4096


class Batch(NamedTuple):
    """What a forward pass left; entries of a value that is not positive are left out."""

    indices: Tensor
    """[n, k] int64"""
    values: Tensor
    """[n, k]"""
    value_grads: Tensor
    """[n, k]"""
    residual: Tensor
    """[n, d_out], or [g, n, d_out] with `group_ends`"""
    inputs: Tensor
    """[n, d]"""
    group_ends: Tensor | None
    """[g] int64"""


class Parameter(NamedTuple):
    """A parameter and its moments, all [m, d] or [m]."""

    weight: Tensor
    first: Tensor
    second: Tensor


class Shaping(NamedTuple):
    """What is done to the gradients, see `reference.shape_gradients`."""

    shrink_enc: Tensor | None
    """[m]"""
    shrink_dec: Tensor | None
    """[m]"""
    sign: Tensor | None
    """[2]"""
    factor: Tensor | None
    """[]"""
    project: bool
    """whether the part of the decoder's gradient along its rows is removed"""


class AdamSettings(NamedTuple):
    """Constants of Adam, and on the device what its corrections make of the learning rate."""

    rates: Tensor
    """[2] float64"""
    beta1: float
    beta2: float
    eps: float

    @property
    def constants(self) -> tuple[float, float, float, float]:
        """1 - beta1, beta2, 1 - beta2 and eps; the differences are those of float64."""
        return 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.eps


class _Side(NamedTuple):
    """One matrix, and what its gradient is made of."""

    parameter: Parameter
    coefficients: Tensor
    """[n, k] multiply `rows` in the sums over tokens"""
    rows: Tensor
    """[n, d], or [g, n, d] with `groups`"""
    groups: Groups | None
    extra: Tensor | None
    """[c, d]"""
    shrink: Tensor | None
    """[m]"""
    scalars: Tensor
    """[m], see `update_rows`"""


@dataclass(frozen=True)
class LatentPass:
    """A pass over the latents, which updates them or measures what they would be updated by.

    Tensors are checked, contiguous and of float32.
    """

    batch: Batch
    w_enc: Parameter
    b_enc: Parameter
    w_dec: Parameter
    update_encoder: bool
    """whether w_enc learns; b_enc always does"""
    update_decoder: bool
    extra: Extra | None
    shaping: Shaping
    adam: AdamSettings
    unit_norm: bool
    """whether rows of w_dec get norm one after Adam"""
    packed: tuple[str, Tensor, Tensor, Tensor] | None
    """the product, and the units, norm and lost of w_enc, see `RoundedRows`"""

    def update(self) -> tuple[Tensor, Tensor]:
        """Apply `reference.latent_update`.

        Returns the gradient of the inputs summed over tokens [d], and the number of tokens on
        which each latent is active, int64 [m].
        """
        return self._run(None)

    def squares(self) -> tuple[Tensor, Tensor]:
        """Measure the gradients that `update` would hand to Adam.

        Returns the gradient of the inputs summed over tokens [d], and the squared length of each
        latent's gradients, float64 [m].
        """
        squares = torch.empty_like(self.b_enc.weight, dtype=torch.float64)
        input_grad_sum, _ = self._run(squares)
        return input_grad_sum, squares

    @property
    def _projection(self) -> str:
        """How the part of the decoder's gradient along its rows is found, see `update_rows`.

        It can be inferred from gradients of values, unless there are decays: these they do not
        hold, and a decay of zero says that they belong to another decoder, a rounded one.
        """
        if not (self.shaping.project and self.update_decoder):
            return "none"
        decays = self.shaping.shrink_dec is not None or self.shaping.sign is not None
        return "measured" if decays else "inferred"

    def _run(self, squares: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, extra, shaping = self.batch, self.extra, self.shaping
        m, d = self.w_enc.weight.shape
        by_latent = sort_by_latent(batch.indices, m, values=batch.values)
        slots = None
        if extra:
            inferred = self._projection == "inferred"
            slots = slots_of(extra, self.w_dec.weight, along=inferred)
        bias_grads, along, fired = self._biases(by_latent, slots, squares)
        if self.update_decoder:
            decoder = _Side(
                self.w_dec,
                batch.values,
                batch.residual,
                None if batch.group_ends is None else Groups(batch.group_ends, batch.indices),
                extra.w_dec if extra else None,
                shaping.shrink_dec,
                along,
            )
            self._rows(decoder, by_latent, slots, squares, None)
        encoder = _Side(
            self.w_enc,
            batch.value_grads,
            batch.inputs,
            None,
            extra.w_enc if extra else None,
            shaping.shrink_enc,
            bias_grads,
        )
        shares = bias_grads.new_empty(triton.cdiv(m, _together(m)), d)
        self._rows(encoder, by_latent, slots, squares, shares)
        return shares.sum(0), fired

    def _biases(
        self, by_latent: ByLatent, slots: Slots | None, squares: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of b_enc, the parts of the decoder's along its rows, and `fired`."""
        batch, factor = self.batch, self.shaping.factor
        some = bias_grads = torch.empty_like(self.b_enc.weight)  # for arguments that are not read
        inferred = self._projection == "inferred"
        along = torch.empty_like(bias_grads) if inferred else some
        fired = torch.empty_like(bias_grads, dtype=torch.int64)
        update_biases[(len(bias_grads),)](
            batch.values,
            batch.value_grads,
            by_latent.entry,
            by_latent.start,
            slots.of_latent if slots else some,
            self.extra.b_enc if self.extra else some,
            slots.along if slots else some,
            some if factor is None else factor,
            bias_grads,
            along,
            fired,
            some if squares is None else squares,
            *self.b_enc,
            self.adam.rates,
            *self.adam.constants,
            EXTRA=slots is not None,
            ALONG=inferred,
            FACTOR=factor is not None,
            TASK="update" if squares is None else "squares",
            BLOCK=8 if interpreting() else 128,
            num_warps=1,
            **LAUNCH,
        )
        return bias_grads, along, fired

    def _rows(
        self,
        side: _Side,
        by_latent: ByLatent,
        slots: Slots | None,
        squares: Tensor | None,
        shares: Tensor | None,
    ) -> None:
        """Launch `update_rows` on one side: the encoder if it gets `shares` [programs, d]."""
        m, d = side.parameter.weight.shape
        n, k = self.batch.indices.shape
        sign, factor = self.shaping.sign, self.shaping.factor
        encoder, some = shares is not None, side.scalars
        if encoder and not self.update_encoder:
            task, partial = "share", some
        else:
            task = "update" if squares is None else "squares"
            partial = partial_sums(side.coefficients, by_latent, side.rows, k, side.groups)
        updating = task == "update"
        packed = self.packed if encoder and updating else None
        product, *arrays = packed or ("float32", some, some, some)
        projection = "none" if encoder else self._projection
        block_e, block_d = _blocks(d, projection)
        update_rows[(triton.cdiv(m, _together(m)),)](
            side.coefficients,
            by_latent.entry,
            by_latent.start,
            by_latent.piece_start,
            side.rows,
            partial,
            side.groups.ends if side.groups else some,
            slots.of_latent if slots else some,
            some if side.extra is None else side.extra,
            some if side.shrink is None else side.shrink,
            some if sign is None else sign,
            some if factor is None else factor,
            side.scalars,
            some if shares is None else shares,
            some if squares is None else squares,
            *side.parameter,
            self.adam.rates,
            *arrays,
            m,
            len(side.groups.ends) if side.groups else 1,
            n,
            d,
            arrays[0].shape[1] if packed else d,
            k,
            *self.adam.constants,
            GROUPED=side.groups is not None,
            EXTRA=slots is not None,
            SHRINK=side.shrink is not None,
            SIGN=sign is not None,
            PROJECT=projection,
            FACTOR=factor is not None,
            ENCODER=encoder,
            TASK=task,
            UNIT_NORM=self.unit_norm and updating and not encoder,
            PACK=packed is not None,
            DROP=DROPPED_BITS[product],
            ONE_BLOCK=d <= block_d,
            TOGETHER=_together(m),
            BLOCK_E=block_e,
            BLOCK_D=block_d,
            num_warps=max(4, block_d // 256),
            maxnreg=thread_registers(16),
            **LAUNCH,
        )


def _blocks(d: int, projection: str) -> tuple[int, int]:
    """The numbers of entries and of columns that a program holds at once.

    To measure a part along rows of more than one block, gradients are computed twice, so up to
    4096 columns are one block.
    """
    block_e, block_d = entry_blocks(d)
    if projection == "measured" and not interpreting():
        block_d = min(power_of_two(d), 4096)
    return block_e, block_d


def _together(m: int) -> int:
    return _TOGETHER * -(-m // (_TOGETHER * _PROGRAMS))
