"""Products of AuxK with the dead latents of which this rank has a share."""

import torch
from torch import Tensor

from saefast.ops.latent_sum import latent_sum
from saefast.ops.partial_sums import partial_dots
from saefast.ops.topk_encode import topk_encode_op
from saefast.train.ranks.merge import merged_largest
from saefast.train.ranks.share import Share
from saefast.types import SparseCode


class SharedProducts:
    """See `AuxProducts`; the rows of W_enc are those of this rank's dead latents.

    Args:
        share: the share of this rank.
        dead: [c] int64, the dead latents, ascending.
    """

    def __init__(self, share: Share, dead: Tensor) -> None:
        self.share, self.width = share, share.width
        each = [share.rows_of(rank) for rank in range(share.ranks.size)]
        ends = torch.searchsorted(
            dead, torch.tensor([rows.stop for rows in each], device="cpu")
        ).tolist()
        starts = [0, *ends[:-1]]
        self._counts = [end - start for start, end in zip(starts, ends, strict=True)]
        self.places = slice(starts[share.ranks.rank], ends[share.ranks.rank])
        """places of this rank's latents in the list"""

    def rows(self, weight: Tensor, latents: Tensor) -> Tensor:
        """See `AuxProducts`."""
        return weight[latents[self.places] - self.share.rows.start]

    def largest(
        self, inputs: Tensor, encoder: Tensor, shift: Tensor, k: int, *, absolute: bool
    ) -> tuple[Tensor, Tensor]:
        """See `AuxProducts`."""
        mine, n = min(k, len(encoder)), len(inputs)
        values, indices = inputs.new_zeros(n, 0), torch.zeros(n, 0, dtype=torch.int64, device="cpu")
        if mine > 0:
            values, indices = topk_encode_op(
                inputs, encoder, shift, None, mine, "exact", absolute=absolute
            )
        code = SparseCode(values, indices + self.places.start)
        return merged_largest(self.share, code, k, self._counts, absolute=absolute)

    def dots(self, rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
        """See `AuxProducts`."""
        share = self.share
        return share.added(partial_dots(rows, weight, indices, share.width, share.ranks.size))

    def total(self, sums: Tensor) -> Tensor:
        """See `AuxProducts`."""
        return self.share.joined_columns(sums).sum()

    def sum_of_rows(self, values: Tensor, indices: Tensor, rows: Tensor, count: int) -> Tensor:
        """See `AuxProducts`."""
        start, stop = self.places.start, self.places.stop
        mine = (indices >= start) & (indices < stop)
        own = torch.where(mine, indices - start, 0)
        sums: Tensor = latent_sum(values * mine, own, rows, max(stop - start, 1))
        return sums[: stop - start]
