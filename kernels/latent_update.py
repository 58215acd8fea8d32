"""Gradient, Adam and unit norm of every latent in one pass over its rows; no gradient is stored."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .by_latent import ByLatent, sort_by_latent
from .device import LAUNCH, has_tma, interpreting, power_of_two, thread_registers
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
    partial: Tensor | None
    """[pieces, d] see `partial_sums`; None where the matrix does not learn"""


class _Scalars(NamedTuple):
    """One number for each latent, computed before its rows; [m] each."""

    bias_grads: Tensor
    """the gradients of b_enc"""
    along: Tensor
    """the parts of the decoder's gradient along its rows, where they are inferred"""
    fired: Tensor
    """int64, the number of tokens on which the latent is active"""


@dataclass(frozen=True)
class LatentPass:
    """A pass over the latents, which measures their gradients, updates by them, or does both.

    The order of the entries, the sums over the pieces of long runs and the slots of extra gradients
    are computed once for both, and so take their memory at the same time: sums over pieces are at
    most [2 n k / 512, d] for each matrix. `squares` must precede `update`, which ends the pass.
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

    def update(self, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply `reference.latent_update` with gradients times `factor` [].

        Returns the gradient of the inputs summed over tokens [d], and the number of tokens on
        which each latent is active, int64 [m].
        """
        self._run(factor, None)
        return self._input_grad_sum, self._scalars.fired

    def squares(self, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Measure the gradients that `update` would hand to Adam.

        Returns the gradient of the inputs summed over tokens [d], and the squared length of each
        latent's gradients, float64 [m].
        """
        squares = torch.empty_like(self.b_enc.weight, dtype=torch.float64)
        self._run(factor, squares)
        return self._input_grad_sum, squares

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

    @cached_property
    def _by_latent(self) -> ByLatent:
        batch = self.batch
        return sort_by_latent(batch.indices, len(self.b_enc.weight), values=batch.values)

    @cached_property
    def _slots(self) -> Slots | None:
        if not self.extra:
            return None
        return slots_of(self.extra, self.w_dec.weight, along=self._projection == "inferred")

    @cached_property
    def _scalars(self) -> _Scalars:
        """Memory for what `_biases` computes."""
        bias_grads = torch.empty_like(self.b_enc.weight)
        inferred = self._projection == "inferred"
        return _Scalars(
            bias_grads,
            torch.empty_like(bias_grads) if inferred else bias_grads,  # not looked at
            torch.empty_like(bias_grads, dtype=torch.int64),
        )

    @cached_property
    def _shares(self) -> Tensor:
        """Memory for the programs' shares of the inputs' gradient, [programs, d]."""
        m, d = self.w_enc.weight.shape
        return self.w_enc.weight.new_empty(triton.cdiv(m, _together(m)), d)

    @cached_property
    def _input_grad_sum(self) -> Tensor:
        """The gradient of the inputs summed over tokens [d], once the shares are computed."""
        return self._shares.sum(0)

    @cached_property
    def _decoder(self) -> _Side:
        batch, extra = self.batch, self.extra
        groups = None if batch.group_ends is None else Groups(batch.group_ends, batch.indices)
        return _Side(
            self.w_dec,
            batch.values,
            batch.residual,
            groups,
            extra.w_dec if extra else None,
            self.shaping.shrink_dec,
            self._partial(batch.values, batch.residual, groups) if self.update_decoder else None,
        )

    @cached_property
    def _encoder(self) -> _Side:
        batch, extra = self.batch, self.extra
        return _Side(
            self.w_enc,
            batch.value_grads,
            batch.inputs,
            None,
            extra.w_enc if extra else None,
            self.shaping.shrink_enc,
            self._partial(batch.value_grads, batch.inputs, None) if self.update_encoder else None,
        )

    def _partial(self, coefficients: Tensor, rows: Tensor, groups: Groups | None) -> Tensor:
        k = self.batch.indices.shape[1]
        return partial_sums(coefficients, self._by_latent, rows, k, groups)

    def _run(self, factor: Tensor | None, squares: Tensor | None) -> None:
        """Fill `squares` [m], or update where there are none."""
        self._biases(factor, squares)
        if self.update_decoder:
            self._rows(self._decoder, factor, squares, encoder=False)
        self._rows(self._encoder, factor, squares, encoder=True)

    def _biases(self, factor: Tensor | None, squares: Tensor | None) -> None:
        """Launch `update_biases`."""
        batch, by_latent, slots, scalars = self.batch, self._by_latent, self._slots, self._scalars
        some = scalars.bias_grads  # for arguments that are not read
        update_biases[(len(some),)](
            batch.values,
            batch.value_grads,
            by_latent.entry,
            by_latent.start,
            slots.of_latent if slots else some,
            self.extra.b_enc if self.extra else some,
            slots.along if slots else some,
            some if factor is None else factor,
            *scalars,
            some if squares is None else squares,
            *self.b_enc,
            self.adam.rates,
            *self.adam.constants,
            EXTRA=slots is not None,
            ALONG=self._projection == "inferred",
            FACTOR=factor is not None,
            TASK="update" if squares is None else "squares",
            BLOCK=8 if interpreting() else 128,
            num_warps=1,
            **LAUNCH,
        )

    def _rows(
        self, side: _Side, factor: Tensor | None, squares: Tensor | None, *, encoder: bool
    ) -> None:
        """Launch `update_rows` on one side."""
        m, d = side.parameter.weight.shape
        n, k = self.batch.indices.shape
        by_latent, slots, sign = self._by_latent, self._slots, self.shaping.sign
        some = scalars = self._scalars.bias_grads if encoder else self._scalars.along
        updating = side.partial is not None and squares is None
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
            some if side.partial is None else side.partial,
            side.groups.ends if side.groups else some,
            slots.of_latent if slots else some,
            some if side.extra is None else side.extra,
            some if side.shrink is None else side.shrink,
            some if sign is None else sign,
            some if factor is None else factor,
            scalars,
            self._shares if encoder else some,
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
            TASK="update" if updating else "share" if side.partial is None else "squares",
            UNIT_NORM=self.unit_norm and updating and not encoder,
            PACK=packed is not None,
            DROP=DROPPED_BITS[product],
            ONE_BLOCK=d <= block_d,
            TOGETHER=_together(m),
            BLOCK_E=block_e,
            BLOCK_D=block_d,
            num_warps=max(4, block_d // 256),
            # Before sm_90 some variants need more registers than 16 warps leave to a thread.
            maxnreg=thread_registers(16 if has_tma(some) else 12),
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
