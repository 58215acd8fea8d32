"""Compute the gradient of every latent and update it, by blocks of columns; store no gradient."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from saefast.types import Learned, Update

from ..codes.by_latent import ByLatent, sort_by_latent
from ..codes.latent_sum import Groups, entry_blocks, partial_sums
from ..device import LAUNCH, interpreting, power_of_two, thread_registers
from ..round_rows import DROPPED_BITS
from .extra_gradients import Slots, slots_of
from .join_parts import join_lengths, join_parts, restore_norms
from .update_biases import update_biases
from .update_columns import update_columns

_TOGETHER = 16
"""latents of one program, which sums its share of the inputs' gradient into one row of memory; a
multiple of it if more than `_PROGRAMS` programs would need a row each"""
_PROGRAMS = 4096
"""maximum number of such programs"""


class _Side(NamedTuple):
    """One matrix and the operands of its gradient."""

    learned: Learned
    """the matrix [m, d] and its moments"""
    coefficients: Tensor
    """[n, k] factors of `rows` in the sums over tokens"""
    rows: Tensor
    """[n, d], or [g, n, d] with `groups`"""
    groups: Groups | None
    """groups of latents that learn from different rows; None: one group"""
    extra: Tensor | None
    """[c, d] additional gradients, see `ExtraGradients`"""
    shrink: Tensor | None
    """[m] multiples of the rows that are added to their gradients, see `Decay`"""
    partial: Tensor | None
    """[pieces, d] see `partial_sums`; None if the matrix is not updated"""


class _Scalars(NamedTuple):
    """Numbers of each latent, computed before its rows; [m] each."""

    bias_grads: Tensor
    """gradients of b_enc"""
    along: Tensor
    """components of the decoder's gradient along its rows, if they are removed"""
    fired: Tensor
    """int64, number of tokens on which the latent is active"""


@dataclass(frozen=True)
class LatentPass:
    """A pass over the latents that measures their gradients, updates by them, or does both.

    The order of the entries, the sums over pieces and the slots of extra gradients are computed
    once for both, so they occupy their memory at the same time: sums over pieces take at most [2 n
    k / 512, d] for each matrix. `squares` must be called before `update`, which ends the pass.
    """

    operands: Update
    """operands, checked, contiguous and float32; the weight is packed as `RoundedRows`"""

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply `reference.latent_update` in place.

        Args:
            factor: [] float64, factor of the gradients, instead of the operands' one; None: 1.

        Returns:
            The gradient of the inputs summed over tokens [d], and the number of tokens on which
            each latent is active, [m] int64.
        """
        self._run(factor, None)
        return self._input_grad_sum, self._scalars.fired

    def squares(self) -> tuple[Tensor, Tensor]:
        """Measure the gradients that an update by the operands would pass to Adam.

        Returns:
            The gradient of the inputs summed over tokens [d], and the squared norm of each latent's
            gradients, [m] float64.
        """
        squares = torch.empty_like(self.operands.b_enc, dtype=torch.float64)
        self._run(self.operands.factor, squares)
        return self._input_grad_sum, squares

    @property
    def _projection(self) -> str:
        """How the component of the decoder's gradient along its rows is computed, if it is removed.

        It can be inferred from the gradients of values, unless there are decays: the gradients of
        values do not contain them. A decay of zero also demands to measure it: it indicates that
        the gradients of values belong to a rounded copy of the decoder.
        """
        operands = self.operands
        if not (operands.projects and operands.update_decoder):
            return "none"
        decays = operands.shrink_dec is not None or operands.sign is not None
        return "measured" if decays else "inferred"

    @property
    def _projects(self) -> bool:
        """Whether the component of the decoder's gradient along its rows is removed."""
        return self._projection != "none"

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
        """Memory for the results of `_biases`."""
        bias_grads = torch.empty_like(self.operands.b_enc)
        return _Scalars(
            bias_grads,
            torch.empty_like(bias_grads) if self._projects else bias_grads,  # not read
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
        """1 - beta1, beta2, 1 - beta2 and eps; differences are computed in float64."""
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
        """Compute `squares` [m] if given; otherwise update."""
        operands = self.operands
        self._biases(factor, squares)
        learning = [
            (side, encoder)
            for side, encoder in ((self._decoder, False), (self._encoder, True))
            if side.partial is not None
        ]
        if squares is None:
            for side, encoder in learning:
                self._update(side, factor, encoder=encoder)
        else:
            counts = [_column_blocks(side.rows.shape[-1]) for side, _ in learning]
            parts = self._parts(sum(counts))
            for (side, encoder), own in zip(learning, parts.split(counts), strict=True):
                self._columns(side, "squares", factor, own, encoder=encoder)
            self._join(parts, squares, add=True)
        if not operands.update_encoder:
            self._columns(self._encoder, "share", None, self._parts(1), encoder=True)

    def _biases(self, factor: Tensor | None, squares: Tensor | None) -> None:
        """Launch `update_biases`."""
        operands, by_latent, slots = self.operands, self._by_latent, self._slots
        scalars = self._scalars
        some = scalars.bias_grads  # in place of arguments that are not read
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

    def _update(self, side: _Side, factor: Tensor | None, *, encoder: bool) -> None:
        """Update one side, then its unit norm and packed norms, which need whole rows."""
        operands, weight = self.operands, side.learned.weight
        m, d = weight.shape
        parts = self._parts(2 * _column_blocks(d))
        own, lost_parts = parts.chunk(2)
        self._columns(side, "update", factor, own, lost_parts, encoder=encoder)
        if encoder and operands.packed:
            _, norm, lost = operands.packed
            block = _joined()
            join_lengths[(triton.cdiv(m, block),)](
                own, lost_parts, norm, lost, m, len(own), d, BLOCK=block, num_warps=4, **LAUNCH
            )
        if not encoder and operands.unit_norm:
            rows, columns = (2, 16) if interpreting() else (4, 512)
            restore_norms[(triton.cdiv(m, rows), triton.cdiv(d, columns))](
                weight, own, m, len(own), d, ROWS=rows, BLOCK_D=columns, num_warps=4, **LAUNCH
            )

    @cached_property
    def _along(self) -> Tensor:
        """The components of the decoder's gradient along its rows, [m]."""
        if self._projection == "measured":
            parts = self._parts(_column_blocks(self.operands.w_dec.shape[1]))
            self._columns(self._decoder, "along", None, parts, encoder=False)
            self._join(parts, self._scalars.along, add=False)
        return self._scalars.along

    def _parts(self, count: int) -> Tensor:
        """Return uninitialised memory for sums over blocks of columns, [count, m]."""
        return self.operands.b_enc.new_empty(count, len(self.operands.b_enc))

    def _join(self, parts: Tensor, joined: Tensor, *, add: bool) -> None:
        """Launch `join_parts`."""
        block = _joined()
        count, m = parts.shape
        join_parts[(triton.cdiv(m, block),)](
            parts, joined, m, count, ADD=add, BLOCK=block, num_warps=4, **LAUNCH
        )

    def _columns(
        self,
        side: _Side,
        task: str,
        factor: Tensor | None,
        parts: Tensor,
        lost_parts: Tensor | None = None,
        *,
        encoder: bool,
    ) -> None:
        """Launch `update_columns` on one side."""
        operands, some = self.operands, self._scalars.bias_grads
        m, d = side.learned.weight.shape
        updating, projects = task == "update", not encoder and task != "along" and self._projects
        packed = operands.packed if encoder and updating else None
        units = packed[0] if packed else some
        multiplier = operands.multiplier if packed else None
        arguments, switches = self._gradient(side, factor)
        update_columns[(triton.cdiv(m, _together(m)), _column_blocks(d))](
            *arguments,
            self._along if projects else some,
            self._shares if encoder else some,
            parts,
            *side.learned,
            operands.rates,
            units,
            parts if lost_parts is None else lost_parts,
            some if multiplier is None else multiplier,
            m,
            len(side.groups.ends) if side.groups else 1,
            len(operands.indices),
            d,
            units.shape[1] if packed else d,
            operands.indices.shape[1],
            *self._adam_constants,
            **switches,
            PROJECT=projects,
            ENCODER=encoder,
            TASK=task,
            PACK=packed is not None,
            MEASURE=updating and not encoder and operands.unit_norm,
            DROP=DROPPED_BITS[operands.product if packed else "float32"],
            HALF=multiplier is not None,
            TOGETHER=_together(m),
            BLOCK_E=entry_blocks(d)[0],
            BLOCK_D=_columns_of_block(d),
            # Measured on an H100: an update with two warps has fewer stalls, although it spills a
            # few registers; it took 0.88 of the time of one without spills.
            num_warps=2 if updating else 1,
            maxnreg=thread_registers(32 if updating else 16),
            **LAUNCH,
        )

    def _gradient(self, side: _Side, factor: Tensor | None) -> tuple[list[Tensor], dict[str, bool]]:
        """Return the arguments of `update_columns` up to `factor`, and the switches for them."""
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
    """Return the number of columns of a program of `update_columns`."""
    return min(power_of_two(d), 16 if interpreting() else 256)


def _column_blocks(d: int) -> int:
    return -(-d // _columns_of_block(d))


def _joined() -> int:
    """Return the number of latents whose parts a program joins."""
    return 8 if interpreting() else 256


def _together(m: int) -> int:
    """Return the number of latents of a program of `update_columns`, of m in all."""
    return _TOGETHER * -(-m // (_TOGETHER * _PROGRAMS))
