"""Products of a batch with an SAE of which this rank has a share."""

import torch
from torch import Tensor

from saefast.ops.latent_sum import column_sum
from saefast.ops.partial_sums import partial_dots, partial_squares
from saefast.ops.row_norms import correctly_rounded_roots
from saefast.ops.sparse_decode import sparse_decode_op
from saefast.sae import SAE
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.ranks.merge import merged_above, merged_largest
from saefast.train.ranks.share import Share
from saefast.types import SparseCode, ThresholdCode


class SharedEncoder(PackedEncoder):
    """A `PackedEncoder` of a share of an SAE, whose codes are those of the whole SAE.

    Every rank encodes with its rows of W_enc, and gets the merged code. Residuals and their sums
    over tokens have this rank's columns; all other results are on all ranks.
    """

    def __init__(
        self, sae: SAE, share: Share, precision: str, *, rounded_decoder: bool = False
    ) -> None:
        super().__init__(sae, precision, rounded_decoder=rounded_decoder)
        self.share = share

    def _ranked(
        self, inputs: Tensor, k: int, scale: Tensor | None, *, absolute: bool
    ) -> SparseCode:
        """See `PackedEncoder`; `scale` [m] is that of all latents."""
        rows = self.share.rows
        mine = min(k, rows.stop - rows.start)
        code = self._nothing(inputs)
        if mine > 0:
            own = None if scale is None else scale[rows]
            values, indices = super()._ranked(inputs, mine, own, absolute=absolute)
            code = SparseCode(values, indices + rows.start)
        counts = self.share.counts_of_rows()
        return merged_largest(self.share, code, k, counts, absolute=absolute)

    def _nothing(self, inputs: Tensor) -> SparseCode:
        """Return the code of a rank without latents."""
        n = len(inputs)
        return SparseCode(
            inputs.new_zeros(n, 0), torch.zeros(n, 0, dtype=torch.int64, device="cpu")
        )

    def above_in(
        self, width: int, inputs: Tensor, threshold: Tensor, wanted: int | None = None
    ) -> ThresholdCode:
        """See `PackedEncoder`; the threshold is [] or that of all latents, [m]."""
        rows = self.share.rows
        if threshold.ndim:
            threshold = threshold[rows]
        mine = min(width, rows.stop - rows.start)
        if mine == 0:
            nothing = torch.zeros(len(inputs), dtype=torch.int64, device="cpu")
            found = ThresholdCode(*self._nothing(inputs), nothing)
        else:
            values, indices, counts = super().above_in(mine, inputs, threshold, wanted)
            found = ThresholdCode(values, indices + rows.start, counts)
        return merged_above(self.share, found, width)

    def residual(
        self, code: SparseCode, target: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `PackedEncoder`; the residual has this rank's columns."""
        columns, decoder = self.share.columns, self.decoder
        error = sparse_decode_op(*code, decoder, self.sae.b_dec[columns]) - target[:, columns]
        residual = error * factor
        partial = torch.cat([self._dots(residual, decoder, code.indices), self._squares(error)], 1)
        sums = self.share.added(partial)
        value_grads = torch.where(code.values != 0, sums[:, :-1], 0.0)
        # As one process adds them: row by row, in float64.
        total = sums[:, -1].double().numpy().cumsum()[-1]
        return residual, value_grads, torch.tensor(float(total), dtype=torch.float64, device="cpu")

    def prefixes(
        self, code: SparseCode, target: Tensor, group_ends: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `PackedEncoder`; the residuals have this rank's columns."""
        columns, decoder, (values, indices) = self.share.columns, self.decoder, code
        group = torch.searchsorted(group_ends, indices.contiguous(), right=True)
        members = [(group == g) & (values != 0) for g in range(len(group_ends))]
        errors, error = [], self.sae.b_dec[columns] - target[:, columns]
        for member in members:
            error = error + sparse_decode_op(values * member, indices, decoder, None)
            errors.append(error)
        squares = self.share.joined_columns(
            torch.stack([column_sum(error.square()) for error in errors])
        )
        residual = torch.stack(errors).mul_(factor)
        for g in range(len(errors) - 2, -1, -1):
            residual[g] += residual[g + 1]
        partial = torch.zeros_like(values)
        for rows, member in zip(residual, members, strict=True):
            dots = self._dots(rows, decoder, torch.where(member, indices, 0))
            partial = torch.where(member, dots, partial)
        totals = torch.stack([of_group.double().sum() for of_group in squares])
        return residual, self.share.added(partial), totals

    def decoder_dots(self, rows: Tensor, indices: Tensor) -> Tensor:
        """See `PackedEncoder`; the rows have this rank's columns."""
        return self.share.added(self._dots(rows, self.sae.W_dec, indices))

    def decoder_norms(self) -> Tensor:
        """See `PackedEncoder`."""
        width, ranks = self.share.width, self.share.ranks.size
        squares = partial_squares(self.sae.W_dec.detach(), width, ranks)
        return correctly_rounded_roots(self.share.added(squares))

    def column_sum(self, residual: Tensor) -> Tensor:
        """See `PackedEncoder`; [d_out] for all columns."""
        return self.share.joined_columns(column_sum(residual))

    def _dots(self, rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
        return partial_dots(rows, weight, indices, self.share.width, self.share.ranks.size)

    def _squares(self, rows: Tensor) -> Tensor:
        return partial_squares(rows, self.share.width, self.share.ranks.size)[:, None]
