"""Pass over the latents of a training step on a rank that has a share of the SAE."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saefast.ops.cpu import native, threads
from saefast.ops.partial_sums import partial_dots
from saefast.ops.row_norms import correctly_rounded_roots
from saefast.ops.update_operands import contiguous
from saefast.train.ranks.share import LATENTS_PER_TASK, Share
from saefast.types import Update


class SharedPass:
    """See `LatentPass`: the encoder's rows by latents, then the decoder's columns of all latents.

    Args:
        share: the share of this rank.
        update: the update; code, value gradients and inputs are whole, as are `shrink_enc` and
            `shrink_dec`, everything else is this rank's share.
    """

    def __init__(self, share: Share, update: Update) -> None:
        self._share = share
        update = contiguous(update)
        self._decoder, self._encoder = self._columns_of(update), self._rows_of(update)
        self._products: tuple[Tensor | None, Tensor | None] | None = None

    def squares(self) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        share = self._share
        squares = torch.zeros(share.latents, dtype=torch.float64, device="cpu")
        if self._decoder.update_decoder:
            squares += share.added(self._pass_over_columns("squares", self._decoder))
        own = squares[share.rows].clone()
        sums = self._pass_over_rows(self._encoder, own)
        return sums, share.joined_rows(own)

    def update(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `LatentPass`."""
        decoder = self._decoder._replace(factor=factor)
        if decoder.update_decoder:
            squares = self._pass_over_columns("update", decoder)
            if decoder.unit_norm:
                norms = correctly_rounded_roots(self._share.added(squares))
                decoder.w_dec.mul_(torch.where(norms > 0, 1 / norms, 1.0)[:, None])
        sums = self._pass_over_rows(self._encoder._replace(factor=factor), None)
        active = decoder.indices[decoder.values != 0]
        torch.autograd.graph.increment_version([decoder.w_dec, self._encoder.w_enc])
        return sums, torch.bincount(active, minlength=self._share.latents)

    def _columns_of(self, update: Update) -> Update:
        """Return the operands of the decoder, with nothing in place of the encoder."""
        m, nothing = self._share.latents, update.w_enc.new_empty(self._share.latents, 0)
        vector, extra = update.w_enc.new_empty(m), update.extra
        return update._replace(
            inputs=update.inputs.new_empty(len(update.inputs), 0),
            w_enc=nothing,
            w_enc_first=nothing,
            w_enc_second=nothing,
            b_enc=vector,
            b_enc_first=vector,
            b_enc_second=vector,
            units=None,
            norm=None,
            lost=None,
            extra_w_enc=None if extra is None else vector.new_empty(len(extra.latents), 0),
            extra_b_enc=None if extra is None else vector.new_empty(len(extra.latents)),
            shrink_enc=None,
        )

    def _rows_of(self, update: Update) -> Update:
        """Return the operands of the encoder for this rank's latents."""
        rows = self._share.rows
        count = rows.stop - rows.start
        nothing = update.w_dec.new_empty(count, 0)
        mine = (update.indices >= rows.start) & (update.indices < rows.stop)
        changes: dict[str, Any] = {}
        if update.extra_latents is not None:
            latents = update.extra_latents
            own = latents[(latents >= rows.start) & (latents < rows.stop)] - rows.start
            changes = {"extra_latents": own, "extra_w_dec": nothing.new_empty(len(own), 0)}
        return update._replace(
            indices=torch.where(mine, update.indices - rows.start, 0),
            values=update.values * mine,
            residual=update.residual.new_empty(len(update.inputs), 0),
            group_ends=None,
            w_dec=nothing,
            w_dec_first=nothing,
            w_dec_second=nothing,
            update_decoder=False,
            shrink_enc=None if update.shrink_enc is None else update.shrink_enc[rows],
            shrink_dec=None,
            **changes,
        )

    def _pass_over_columns(self, wanted: str, decoder: Update) -> Tensor:
        """Return this rank's part of the sums that `decoder_columns` computes, [m]."""
        if self._products is None:
            self._products = self._along()
        return self._columns_pass(wanted, decoder, *self._products)

    def _columns_pass(
        self, wanted: str, decoder: Update, along: Tensor | None, extra_along: Tensor | None
    ) -> Tensor:
        share = self._share
        partial = decoder.w_dec.new_empty(share.latents)
        native.decoder_columns(
            decoder, wanted, share.width, share.ranks.size, along, extra_along, partial, threads()
        )
        return partial

    def _along(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the products of rows with their gradients [m], or with extra gradients [c].

        The first are needed with penalties alone; see `Update.shrink_dec`.
        """
        share, decoder, extra = self._share, self._decoder, self._decoder.extra
        if not decoder.projects:
            return None, None if extra is None else extra.b_enc
        if decoder.shrink_dec is not None or (decoder.sign is not None and bool(decoder.sign[1])):
            nothing = None if extra is None else extra.b_enc
            return share.added(self._columns_pass("along", decoder, None, nothing)), None
        if extra is None:
            return None, None
        if len(extra.latents) == 0:  # on all ranks, which list the same dead latents
            return None, extra.b_enc
        rows = extra.latents[:, None]
        partial = partial_dots(extra.w_dec, decoder.w_dec, rows, share.width, share.ranks.size)
        return None, share.added(partial.squeeze(1))

    def _pass_over_rows(self, encoder: Update, squares: Tensor | None) -> Tensor:
        """Update this rank's rows of W_enc, or add to `squares`; return the inputs' gradient."""
        share, d = self._share, encoder.w_enc.shape[1]
        counts = [-(-count // LATENTS_PER_TASK) for count in share.counts_of_rows()]
        parts = encoder.w_enc.new_zeros(counts[share.ranks.rank], d)
        fired = torch.empty(len(encoder.b_enc), dtype=torch.int64, device="cpu")
        own = encoder.w_enc.new_empty(d)
        if len(fired):
            native.latent_update(encoder, own, parts, fired, squares, None, threads())
        size, rank = share.ranks.size, share.ranks.rank
        pieces = [parts[:, share.cut(d, other)].contiguous() for other in range(size)]
        mine = share.lengths(d)[rank]
        got = share.ranks.all_to_all(pieces, [(count, mine) for count in counts])
        # Summed from zero in the order of latents, as one process does.
        total = np.add.accumulate(torch.cat(got).numpy(), axis=0)[-1] + 0.0
        return share.collected(torch.from_numpy(total), d)
