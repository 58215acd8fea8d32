"""Covariance of activations."""

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
    """Return the covariance of activations, for the null "covariance" of `fit_subspaces`.

    Args:
        activations: any source that `train_saes` accepts: a tensor [n, d], a path, a store.
        rows: number of rows to read; None reads every row once.
        batch_size: number of rows to read at a time.
        seed: seed of the order in which rows are read.
        progress: show a progress bar on stderr.

    Returns:
        Covariance about the mean, [d, d] float64, with the same bits for any number of threads.
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
    products = torch.zeros(d, d, dtype=torch.float64, device="cpu")
    total = torch.zeros(d, dtype=torch.float64, device="cpu")
    shift: Tensor | None = None
    with side_by_side() as run:
        for part in one_pass:
            block = part.x.to("cpu", torch.float64)
            # Shift close to the mean, to lose less to cancellation in the last subtraction.
            shift = block[0].clone() if shift is None else shift
            block = block - shift
            add_products(products, block, run)
            (part,) = run(lambda part: part.sum(0), [block])
            total += part
    spread = mirrored(products) - torch.outer(total, total) / rows
    return spread / (rows - 1)
