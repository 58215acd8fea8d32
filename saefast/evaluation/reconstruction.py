"""Explained variance, firing rates and L0 of SAEs over any number of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast.activations.one_pass import OnePass
from saefast.activations.protocol import ActivationSource
from saefast.ops.latent_sum import column_sum
from saefast.sae import SAE, as_saes
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa

CONVENTIONS = {
    "explained_variance": "1 - sum of squared errors / sum of squared distances to the mean of all "
    "rows of the pass (training reports distances to the mean of each batch)",
}


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Reconstruction by one SAE on the rows of a pass; see `CONVENTIONS`."""

    explained_variance: float
    firing_rate: Tensor
    """[m] float64 share of rows on which each feature fires"""
    l0: float
    """mean number of active latents per row"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each feature."""
        import pyarrow as pa

        rate = self.firing_rate
        return pa.table({"feature": torch.arange(len(rate)).numpy(), "firing_rate": rate.numpy()})


@torch.no_grad()
def reconstruction(
    saes: SAE | Sequence[SAE],
    activations: ActivationSource,
    *,
    rows: int | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> list[Reconstruction]:
    """Measure the reconstruction by several SAEs in one pass over the activations.

    Args:
        saes: SAEs for the same activations.
        activations: any source that `saefast.activations.open_activations` accepts.
        rows: number of rows after which to stop; required for an iterator.
        batch_size: number of rows encoded at once.
        progress: show a progress bar on stderr.

    Returns:
        One result for each SAE, in their order.
    """
    one_pass = OnePass(
        activations, batch_size=batch_size, rows=rows, what="reconstruction", progress=progress
    )
    saes = as_saes(saes, one_pass.source.d)
    spread = Spread()
    squares = [0.0] * len(saes)
    fired = [torch.zeros(sae.m, dtype=torch.int64) for sae in saes]
    for part in one_pass:
        spread.add(part.target)
        for number, sae in enumerate(saes):
            x = part.x.to(sae.W_dec)
            code = sae.encode(x)
            squares[number] += sum_of_squares(part.target.to(sae.W_dec) - sae.decode(code, x))
            active = code.indices[code.values != 0].cpu()
            fired[number] += torch.bincount(active, minlength=sae.m)
    return [
        Reconstruction(
            explained_variance=spread.explained(its_squares),
            firing_rate=its.double() / one_pass.rows,
            l0=int(its.sum()) / spread.rows,
        )
        for its_squares, its in zip(squares, fired, strict=True)
    ]


class Spread:
    """Running sum of squared distances of rows to their mean, which is known only at the end."""

    def __init__(self) -> None:
        self.rows = 0
        self._near = self._sum = torch.zeros(0, dtype=torch.float64)
        self._squares = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows [n, d]."""
        rows = rows.double().cpu()
        if self.rows == 0:
            # Distances to a point near the mean avoid cancellation in the final difference.
            self._near = column_sum(rows) / len(rows)
            self._sum = torch.zeros_like(self._near)
        distance = rows - self._near
        self.rows += len(rows)
        self._sum += column_sum(distance)
        self._squares += sum_of_squares(distance)

    @property
    def squares(self) -> float:
        """Sum of squared distances to the mean."""
        return self._squares - float(self._sum.square().sum()) / self.rows

    def explained(self, squared_errors: float) -> float:
        """Return the explained share of the variance; NaN if all rows are equal."""
        return 1 - squared_errors / self.squares if self.squares > 0 else float("nan")


def sum_of_squares(rows: Tensor) -> float:
    """Return the sum of squares in double precision, the same bits for any number of threads."""
    return float(column_sum(rows.double().square()).sum())
