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
from .update_columns import add_squares, join_lengths, update_columns
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
        of_decoder = of_encoder = None
        if squares is not None:
            parts = self._scalars.bias_grads.new_empty(sum(self._square_parts), len(squares))
            of_decoder, of_encoder = parts.split(self._square_parts)
        if self.operands.update_decoder:
            if self._whole_rows(measuring=squares is not None):
                self._rows(factor, of_decoder)
            else:
                self._columns(self._decoder, factor, of_decoder, encoder=False)
        self._columns(self._encoder, factor, of_encoder, encoder=True)
        if squares is not None:
            block = _joined()
            add_squares[(triton.cdiv(len(squares), block),)](
                parts, squares, len(squares), len(parts), BLOCK=block, num_warps=4, **LAUNCH
            )

    def _whole_rows(self, *, measuring: bool) -> bool:
        """Whether the decoder's rows cannot be worked through by columns."""
        operands = self.operands
        return self._projection == "measured" or (operands.unit_norm and not measuring)

    @property
    def _square_parts(self) -> list[int]:
        """The numbers of sums of squares that the decoder's and the encoder's rows have."""
        operands = self.operands
        decoder = 1 if self._whole_rows(measuring=True) else _column_blocks(operands.w_dec.shape[1])
        return [
            decoder if operands.update_decoder else 0,
            _column_blocks(operands.w_enc.shape[1]) if operands.update_encoder else 0,
        ]

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

    def _columns(
        self, side: _Side, factor: Tensor | None, square_parts: Tensor | None, *, encoder: bool
    ) -> None:
        """Launch `update_columns` on one side, and join the lengths of what it packs."""
        operands = self.operands
        some = scalars = self._scalars.bias_grads if encoder else self._scalars.along
        m, d = side.learned.weight.shape
        updating = side.partial is not None and square_parts is None
        packed = operands.packed if encoder and updating else None
        units, norm, lost = packed or (some, some, some)
        blocks, multiplier = _column_blocks(d), operands.multiplier
        norm_parts, lost_parts = some.new_empty(2, blocks, m) if packed else (some, some)
        arguments, switches = self._gradient(side, factor)
        update_columns[(triton.cdiv(m, _together(m)), blocks)](
            *arguments,
            scalars,
            self._shares if encoder else some,
            some if square_parts is None else square_parts,
            *side.learned,
            operands.rates,
            units,
            norm_parts,
            lost_parts,
            some if multiplier is None else multiplier,
            m,
            len(side.groups.ends) if side.groups else 1,
            len(operands.indices),
            d,
            units.shape[1] if packed else d,
            operands.indices.shape[1],
            *self._adam_constants,
            **switches,
            INFERRED=not encoder and self._projection == "inferred",
            ENCODER=encoder,
            TASK="update" if updating else "share" if side.partial is None else "squares",
            PACK=packed is not None,
            DROP=DROPPED_BITS[operands.product if packed else "float32"],
            HALF=packed is not None and multiplier is not None,
            TOGETHER=_together(m),
            BLOCK_E=entry_blocks(d)[0],
            BLOCK_D=_columns_of_block(d),
            num_warps=2,
            # As many warps as have registers enough; see `thread_registers`.
            maxnreg=thread_registers(16 if packed else 24 if updating or side.groups else 32),
            **LAUNCH,
        )
        if packed:
            block = _joined()
            join_lengths[(triton.cdiv(m, block),)](
                *(norm_parts, lost_parts, norm, lost, m, blocks, d),
                BLOCK=block,
                num_warps=4,
                **LAUNCH,
            )

    def _rows(self, factor: Tensor | None, squares: Tensor | None) -> None:
        """Launch `update_rows` on the decoder."""
        operands, side, some = self.operands, self._decoder, self._scalars.along
        m, d = side.learned.weight.shape
        block_e, block_d = _blocks(d, self._projection)
        arguments, switches = self._gradient(side, factor)
        update_rows[(triton.cdiv(m, _together(m)),)](
            *arguments,
            some,
            some if squares is None else squares,
            *side.learned,
            operands.rates,
            m,
            len(side.groups.ends) if side.groups else 1,
            len(operands.indices),
            d,
            operands.indices.shape[1],
            *self._adam_constants,
            **switches,
            PROJECT=self._projection,
            TASK="update" if squares is None else "squares",
            UNIT_NORM=operands.unit_norm and squares is None,
            ONE_BLOCK=d <= block_d,
            TOGETHER=_together(m),
            BLOCK_E=block_e,
            BLOCK_D=block_d,
            num_warps=max(4, block_d // 256),
            # Before sm_90 some variants need more registers than 16 warps leave to a thread.
            maxnreg=thread_registers(16 if has_tma(some) else 12),
            **LAUNCH,
        )

    def _gradient(self, side: _Side, factor: Tensor | None) -> tuple[list[Tensor], dict[str, bool]]:
        """The arguments and switches of `gradient_of_row`, and the factor."""
        by_latent, slots, sign = self._by_latent, self._slots, self.operands.sign
        some = self._scalars.bias_grads
        optional = (
            side.partial,
            side.groups.ends if side.groups else None,
            slots.of_latent if slots else None,
            side.extra,
            side.shrink,
            sign,
            factor,
        )
        arguments = [
            side.coefficients,
            by_latent.entry,
            by_latent.start,
            by_latent.piece_start,
            side.rows,
            *(some if tensor is None else tensor for tensor in optional),
        ]
        switches = {
            "GROUPED": side.groups is not None,
            "EXTRA": slots is not None,
            "SHRINK": side.shrink is not None,
            "SIGN": sign is not None,
            "FACTOR": factor is not None,
        }
        return arguments, switches


def _columns_of_block(d: int) -> int:
    """How many columns a program of `update_columns` works on."""
    return min(power_of_two(d), 16 if interpreting() else 256)


def _column_blocks(d: int) -> int:
    return -(-d // _columns_of_block(d))


def _joined() -> int:
    """Latents whose parts a program joins."""
    return 8 if interpreting() else 256


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
