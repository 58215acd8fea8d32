"""Norms of rows, by sums with a fixed order on the CPU."""

import numpy as np
import torch
from torch import Tensor

from saefast.ops import gpu
from saefast.ops.gather_dots import gather_dots


def row_norms(weight: Tensor) -> Tensor:
    """Return the norms of the rows of a weight [m, d], [m].

    On a CPU the sums over the width are those of `gather_dots`, so that ranks that have some of the
    columns can compute the same bits; see `partial_squares`.
    """
    if gpu.has(weight):
        norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
        return norms
    each = torch.arange(len(weight), device="cpu")[:, None]
    squares: Tensor = gather_dots(weight.detach(), weight.detach(), each)
    return correctly_rounded_roots(squares.squeeze(1))


def correctly_rounded_roots(squares: Tensor) -> Tensor:
    """Return square roots on the CPU as C++ computes them; torch's differ in the last bit."""
    return torch.from_numpy(np.sqrt(squares.numpy()))
