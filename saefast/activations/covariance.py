"""How activations vary: which directions any dictionary of them is likely to share."""

import torch
from torch import Tensor

from saefast.activations.one_pass import OnePass, count_rows
from saefast.activations.opening import open_activations
from saefast.activations.protocol import ActivationSource
from saefast.linalg import add_products, mirrored, side_by_side


def activation_covariance(
    activations: ActivationSource,
    *,
    rows: int | None = None,
    batch_size: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """The covariance of activations, for the null of that name in `fit_subspaces`.

    Args:
        activations: what `train_saes` takes: a tensor [n, d], a path, a store.
        rows: how many to read; None for all, once.
        batch_size: how many at a time.
        seed: of the order of the rows.
        progress: show a progress bar on stderr.

    Returns:
        [d, d] float64, about the mean; with the same bits for any number of threads.
    """
    source = open_activations(activations)
    rows = count_rows(source, rows, 2)
    one_pass = OnePass(
        source,
        batch_size=batch_size,
        rows=rows,
        seed=seed,
        what="covariance",
        progress=progress,
    )
    d = source.d
    products = torch.zeros(d, d, dtype=torch.float64)
    total = torch.zeros(d, dtype=torch.float64)
    shift: Tensor | None = None
    with side_by_side() as run:
        for part in one_pass:
            block = part.x.to("cpu", torch.float64)
            # Near the mean, so that little is subtracted from much in the end.
            shift = block[0].clone() if shift is None else shift
            block = block - shift
            add_products(products, block, run)
            (part,) = run(lambda part: part.sum(0), [block])
            total += part
    spread = mirrored(products) - torch.outer(total, total) / rows
    return spread / (rows - 1)
