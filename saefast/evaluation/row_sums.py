"""Sums over the rows of each context of the measures of a reconstruction."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.linalg import one_thread
from saefast.sae import SAE, code_of


class RowSums(NamedTuple):
    """Sums over the rows of each context [contexts] in float64, and firings [m]."""

    errors: Tensor
    """squared distances of reconstructions from rows"""
    distances: Tensor
    """squared distances of rows from the mean row"""
    ratios: Tensor
    """lengths of reconstructions divided by lengths of rows"""
    squares: Tensor
    """squared lengths of reconstructions"""
    products: Tensor
    """dot products of rows and reconstructions"""
    cosines: Tensor
    """cosines of rows and reconstructions"""
    active: Tensor
    """numbers of active latents"""
    number: Tensor
    """numbers of rows"""
    fired: Tensor
    """[m] int64 number of rows on which each latent is active"""

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return int(self.number.sum())

    @property
    def explained(self) -> Tensor:
        """Squared distances explained by the reconstructions, [contexts] float64."""
        return self.distances - self.errors


def _joined(sums: Sequence[Tensor], fired: Tensor) -> RowSums:
    errors, distances, ratios, squares, products, cosines, active, number = torch.stack(
        list(sums), 1
    )
    return RowSums(errors, distances, ratios, squares, products, cosines, active, number, fired)


def sums_of_sae(sae: SAE, texts: Sequence[Tensor], mean: Tensor) -> RowSums:
    """Sum the measures over the rows [n, d] of each context; `mean` [d] is the mean of all rows."""
    fired = torch.zeros(sae.m, dtype=torch.int64)
    parts = []
    with torch.no_grad():
        for x in texts:
            code = code_of(sae, x)
            made = sae.decode(code, x.to(sae.W_dec)).to(x)
            active = code.indices[code.values != 0].cpu()
            fired += torch.bincount(active, minlength=sae.m)
            parts.append(_context_sums(x, made, mean, len(active)))
    return _joined(parts, fired)


def sums_of_mean(texts: Sequence[Tensor], mean: Tensor) -> RowSums:
    """Sum the measures where the mean row replaces every row."""
    parts = [_context_sums(x, mean.expand_as(x), mean, 0) for x in texts]
    return _joined(parts, torch.zeros(0, dtype=torch.int64))


def _context_sums(x: Tensor, made: Tensor, mean: Tensor, active: int) -> Tensor:
    """Return the sums of one context in the order of `RowSums`, [8] float64."""
    with one_thread():
        x, made = x.double(), made.double()
        own, its = (torch.linalg.vector_norm(rows, dim=1) for rows in (x, made))
        products = (x * made).sum(1)
        lengths = (own * its).clamp(min=torch.finfo(own.dtype).tiny)
        sums = [
            (x - made).square().sum(),
            (x - mean.double()).square().sum(),
            (its / own.clamp(min=torch.finfo(own.dtype).tiny)).sum(),
            its.square().sum(),
            products.sum(),
            (products / lengths).sum(),
        ]
    return torch.tensor([*map(float, sums), active, len(x)], dtype=torch.float64)
