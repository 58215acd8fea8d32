"""How many of the true neighbours an approximate index found."""

import sys

import torch

from saefast.match.engines import Encode
from saefast.match.neighbours import nearest
from saefast.types import SparseCode
from saefast.unit_rows import UnitRows

_ROWS = 256  # searched exactly


def print_recall(
    backend: str, x: UnitRows, others: UnitRows, found: SparseCode, absolute: bool
) -> float:
    """Print the share of the true neighbours of a sample that is in its lists; returns it."""
    rows = torch.arange(0, len(x), max(1, len(x) // _ROWS), device=x.device)[:_ROWS]
    k = found.indices.shape[1]
    true = nearest(x.subset(rows), others, k, Encode(absolute), 2.0**30)
    hits = (true.indices[:, :, None] == found.indices[rows][:, None, :]).any(2)
    recall = float(hits.double().mean())
    print(
        f"saefast: backend={backend!r} found {recall:.1%} of the {k} nearest of {len(rows)} "
        f"features",
        file=sys.stderr,
    )
    return recall
