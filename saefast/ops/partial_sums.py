"""Parts of sums over the width of which each of several ranks has some columns.

Rank r of R has the columns i with i % R == r, one after the other. The parts of all ranks, added by
`halved`, have the bits of the ops for whole rows on a CPU: these sum over lanes by halves, and the
lanes of a rank are a complete subtree.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from saefast.ops.cpu import contiguous, native, threads


def most_ranks(dtype: torch.dtype) -> int:
    """Return the largest number of ranks for a dtype: the number of lanes of a sum."""
    return 64 // dtype.itemsize


def halved(parts: Sequence[Tensor]) -> Tensor:
    """Add the parts of all ranks, whose number is a power of two, in the order of whole rows."""
    parts = list(parts)
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [low + high for low, high in zip(parts[:half], parts[half:], strict=True)]
    return parts[0]


def partial_dots(rows: Tensor, weight: Tensor, indices: Tensor, width: int, ranks: int) -> Tensor:
    """Compute a rank's part of `gather_dots`.

    Args:
        rows: [n, c] the rank's columns of the first factors.
        weight: [m, c] the rank's columns of the second factors.
        indices: [n, k] int64, rows of `weight`.
        width: number of columns of all ranks.
        ranks: number of ranks.

    Returns:
        [n, k], whose sum over ranks by `halved` is `gather_dots` of whole rows.
    """
    rows, weight, indices = contiguous(rows), contiguous(weight), contiguous(indices)
    out = rows.new_empty(indices.shape)
    native.partial_dots(rows, weight, indices, width, ranks, out, threads())
    return out


def partial_squares(rows: Tensor, width: int, ranks: int) -> Tensor:
    """Compute a rank's part of the squared norms of rows [n, c], [n]; see `partial_dots`."""
    each = torch.arange(len(rows), device="cpu")[:, None]
    return partial_dots(rows, rows, each, width, ranks).squeeze(1)
