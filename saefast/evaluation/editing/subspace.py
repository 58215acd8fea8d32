"""Supervised ceiling of edits: a trained orthonormal basis with a mask (MDAS)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.evaluation.editing.annealing import anneal, schedule_of
from saefast.evaluation.editing.interchange import Interchange
from saefast.evaluation.editing.pairs import Pair
from saefast.linalg import one_thread
from saefast.nulls.permutations import generator_of
from saefast.progress import ProgressBar

SUBSPACE_EPOCHS = 10
"""Number of passes over the pairs"""
SUBSPACE_BATCH = 8
"""Number of pairs in a step; a step turns the axes little, however many pairs it has"""


class Subspace(NamedTuple):
    """Coordinates of h whose interchange changes an attribute."""

    axes: Tensor
    """[d, d] float64 orthonormal rows"""
    chosen: Tensor
    """[d] bool, rows that span the subspace"""


def trained_subspace(
    runs: Interchange,
    pairs: Sequence[Pair],
    *,
    start: Tensor | None = None,
    epochs: int = SUBSPACE_EPOCHS,
    batch_size: int = SUBSPACE_BATCH,
    seed: int,
    bar: ProgressBar,
) -> Subspace:
    """Train a subspace by multi-task distributed alignment search (MDAS, arXiv:2402.17700).

    As in SAEBench, h is rotated, coordinate j of the rotated h is interchanged by the share
    sigmoid(w_j / T), and the result is rotated back. Rotation and w are trained together on cause
    pairs and isolation pairs. After each step of Adam, a QR decomposition makes the rotation
    orthonormal again. Its signs are chosen so that no axis is reversed, since Adam's moments are
    those of the axes before; SAEBench takes the signs that its solver returns.

    Args:
        runs: model with its prompts.
        pairs: pairs for training.
        start: [d, d] orthonormal rows to start from; None: the coordinates of h.
        epochs: number of passes over the pairs.
        batch_size: number of pairs in a step.
        seed: seed of the order of pairs.
        bar: progress bar that counts pairs.

    Returns:
        Orthonormal axes [d, d] and the chosen ones [d].
    """
    rows = runs.rows
    d = rows.shape[1]
    begin = torch.eye(d) if start is None else start.float().T
    columns = begin.to(rows.device).detach().clone().requires_grad_()
    logit = torch.zeros(d, device=rows.device, requires_grad=True)

    def replaced(base: Tensor, source: Tensor, temperature: float) -> Tensor:
        weights = torch.sigmoid(logit / temperature)
        difference = (rows[source] - rows[base]) @ columns
        return (rows[base] @ columns + weights * difference) @ columns.T

    schedule = schedule_of(pairs, batch_size, generator_of(seed, "subspace"), epochs)
    anneal(
        runs,
        schedule,
        [logit, columns],
        replaced,
        bar=bar,
        after_step=lambda: _orthonormal(columns),
    )
    return Subspace(columns.detach().T.double().cpu(), (logit > 0).cpu())


@torch.no_grad()
def _orthonormal(columns: Tensor) -> None:
    """Make columns [d, d] orthonormal in place; none is reversed."""
    with one_thread():
        q, r = torch.linalg.qr(columns)
    signs = r.diagonal().sign()
    columns.copy_(q * torch.where(signs == 0, 1.0, signs))
