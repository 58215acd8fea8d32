"""Gradient, Adam and unit norm of every latent in one pass over its rows; no gradient is stored."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from saefast.types import Learned, Update

from .by_latent import ByLatent, sort_by_latent
from .device import LAUNCH, has_tma, interpreting, power_of_two, thread_registers
from .extra_gradients import Slots, slots_of
from .latent_sum import Groups, entry_blocks, partial_sums
from .round_rows import DROPPED_BITS
from .update_biases import update_biases
from .update_rows import update_rows

_TOGETHER = 16
"""Latents of one program, which sums their shares of the inputs' gradient into one row of memory;
a multiple of it where more than `_PROGRAMS` programs would need that many rows."""
_PROGRAMS = 4096


class _Side(NamedTuple):
    """One matrix, and what its gradient is made of."""

    learned: Learned
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
    """

    operands: Update
    """checked, contiguous and of float32; the weight is packed as `RoundedRows`"""

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply `reference.latent_update` with this `factor` [] instead of that of the operands.

        Returns the gradient of the inputs summed over tokens [d], and the number of tokens on
        which each latent is active, int64 [m].
        """
        self._run(factor, None)
        return self._input_grad_sum, self._scalars.fired

    def squares(self) -> tuple[Tensor, Tensor]:
        """Measure the gradients that an update by the operands would hand to Adam.

        Returns the gradient of the inputs summed over tokens [d], and the squared length of each
        latent's gradients, float64 [m].
        """
        squares = torch.empty_like(self.operands.b_enc, dtype=torch.float64)
        self._run(self.operands.factor, squares)
        return self._input_grad_sum, squares

    @property
    def _projection(self) -> str:
        """How the part of the decoder's gradient along its rows is found, see `update_rows`.

        It can be inferred from gradients of values, unless there are decays: these they do not
        hold, and a decay of zero says that they belong to another decoder, a rounded one.
        """
        operands = self.operands
        if not (operands.projects and operands.update_decoder):
            return "none"
        decays = operands.shrink_dec is not None or operands.sign is not None
        return "measured" if decays else "inferred"

    @cached_property
    def _by_latent(self) -> ByLatent:
        operands = self.operands
        return sort_by_latent(operands.indices, len(operands.b_enc), values=operands.values)

    @cached_property
    def _slots(self) -> Slots | None:
        extra = self.operands.extra
        if extra is None:
            return None
        return slots_of(extra, self.operands.w_dec, along=self._projection == "inferred")

    @cached_property
    def _scalars(self) -> _Scalars:
        """Memory for what `_biases` computes."""
        bias_grads = torch.empty_like(self.operands.b_enc)
        inferred = self._projection == "inferred"
        return _Scalars(
            bias_grads,
            torch.empty_like(bias_grads) if inferred else bias_grads,  # not looked at
            torch.empty_like(bias_grads, dtype=torch.int64),
        )

    @cached_property
    def _shares(self) -> Tensor:
        """Memory for the programs' shares of the inputs' gradient, [programs, d]."""
        m, d = self.operands.w_enc.shape
        return self.operands.w_enc.new_empty(triton.cdiv(m, _together(m)), d)

    @cached_property
    def _input_grad_sum(self) -> Tensor:
        """The gradient of the inputs summed over tokens [d], once the shares are computed."""
        return self._shares.sum(0)

    @property
    def _adam_constants(self) -> tuple[float, float, float, float]:
        """1 - beta1, beta2, 1 - beta2 and eps; the differences are those of float64."""
        operands = self.operands
        return 1.0 - operands.beta1, operands.beta2, 1.0 - operands.beta2, operands.eps

    @cached_property
    def _decoder(self) -> _Side:
        of, groups = self.operands, None
        if of.group_ends is not None:
            groups = Groups(of.group_ends, of.indices)
        return _Side(
            learned=of.decoder,
            coefficients=of.values,
            rows=of.residual,
            groups=groups,
            extra=of.extra_w_dec,
            shrink=of.shrink_dec,
            partial=self._partial(of.values, of.residual, groups) if of.update_decoder else None,
        )

    @cached_property
    def _encoder(self) -> _Side:
        of = self.operands
        return _Side(
            learned=of.encoder,
            coefficients=of.value_grads,
            rows=of.inputs,
            groups=None,
            extra=of.extra_w_enc,
            shrink=of.shrink_enc,
            partial=self._partial(of.value_grads, of.inputs, None) if of.update_encoder else None,
        )

    def _partial(self, coefficients: Tensor, rows: Tensor, groups: Groups | None) -> Tensor:
        k = self.operands.indices.shape[1]
        return partial_sums(coefficients, self._by_latent, rows, k, groups)

    def _run(self, factor: Tensor | None, squares: Tensor | None) -> None:
        """Fill `squares` [m], or update where there are none."""
        self._biases(factor, squares)
        if self.operands.update_decoder:
            self._rows(self._decoder, factor, squares, encoder=False)
        self._rows(self._encoder, factor, squares, encoder=True)

    def _biases(self, factor: Tensor | None, squares: Tensor | None) -> None:
        """Launch `update_biases`."""
        operands, by_latent, slots = self.operands, self._by_latent, self._slots
        scalars = self._scalars
        some = scalars.bias_grads  # for arguments that are not read
        update_biases[(len(some),)](
            operands.values,
            operands.value_grads,
            by_latent.entry,
            by_latent.start,
            slots.of_latent if slots else some,
            operands.extra_b_enc if slots else some,
            slots.along if slots else some,
            some if factor is None else factor,
            *scalars,
            some if squares is None else squares,
            *operands.bias,
            operands.rates,
            *self._adam_constants,
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
        operands = self.operands
        m, d = side.learned.weight.shape
        n, k = operands.indices.shape
        by_latent, slots, sign = self._by_latent, self._slots, operands.sign
        some = scalars = self._scalars.bias_grads if encoder else self._scalars.along
        updating = side.partial is not None and squares is None
        packed = operands.packed if encoder and updating else None
        units, norm, lost = packed or (some, some, some)
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
            *side.learned,
            operands.rates,
            units,
            norm,
            lost,
            some if operands.multiplier is None else operands.multiplier,
            m,
            len(side.groups.ends) if side.groups else 1,
            n,
            d,
            units.shape[1] if packed else d,
            k,
            *self._adam_constants,
            GROUPED=side.groups is not None,
            EXTRA=slots is not None,
            SHRINK=side.shrink is not None,
            SIGN=sign is not None,
            PROJECT=projection,
            FACTOR=factor is not None,
            ENCODER=encoder,
            TASK="update" if updating else "share" if side.partial is None else "squares",
            UNIT_NORM=operands.unit_norm and updating and not encoder,
            PACK=packed is not None,
            DROP=DROPPED_BITS[operands.product if packed else "float32"],
            HALF=packed is not None and operands.multiplier is not None,
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
