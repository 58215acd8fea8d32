"""Products of AuxK on a CPU: their interface, and those of one process."""

from typing import Protocol

import torch
from torch import Tensor


class AuxProducts(Protocol):
    """Products of the auxiliary loss on a CPU that depend on the rows and columns of each rank."""

    width: int
    """columns of the decoder"""

    def rows(self, weight: Tensor, latents: Tensor) -> Tensor:
        """Return the rows of W_enc or entries of b_enc of the given latents."""
        ...

    def largest(
        self, inputs: Tensor, encoder: Tensor, shift: Tensor, k: int, *, absolute: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the k largest scores of the dead latents, [n, k], and their places in the list."""
        ...

    def dots(self, rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
        """Return `gather_dots`."""
        ...

    def total(self, sums: Tensor) -> Tensor:
        """Return the sum of column sums over all columns, []."""
        ...

    def sum_of_rows(self, values: Tensor, indices: Tensor, rows: Tensor, count: int) -> Tensor:
        """Return the `latent_sum` of the `count` dead latents for the rows of `rows`."""
        ...


class WholeProducts:
    """Products of one process."""

    def __init__(self, width: int) -> None:
        self.width = width

    def rows(self, weight: Tensor, latents: Tensor) -> Tensor:
        """See `AuxProducts`."""
        return weight[latents]

    def largest(
        self, inputs: Tensor, encoder: Tensor, shift: Tensor, k: int, *, absolute: bool
    ) -> tuple[Tensor, Tensor]:
        """See `AuxProducts`."""
        values, indices = torch.ops.saefast.topk_encode(
            inputs, encoder, shift, None, k, "exact", absolute=absolute
        )
        return values, indices

    def dots(self, rows: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
        """See `AuxProducts`."""
        dots: Tensor = torch.ops.saefast.gather_dots(rows, weight, indices)
        return dots

    def total(self, sums: Tensor) -> Tensor:
        """See `AuxProducts`."""
        return sums.sum()

    def sum_of_rows(self, values: Tensor, indices: Tensor, rows: Tensor, count: int) -> Tensor:
        """See `AuxProducts`."""
        sums: Tensor = torch.ops.saefast.latent_sum(values, indices, rows, count)
        return sums
