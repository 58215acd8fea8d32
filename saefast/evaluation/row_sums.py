"""Sums over the rows of each context of what an SAE makes of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.linalg import one_thread
from saefast.sae import SAE, code_of


class RowSums(NamedTuple):
    """Sums over the rows of each context [contexts] in float64, and firings [m]."""

    errors: Tensor
    """squared distances of reconstructions to rows"""
    distances: Tensor
    """squared distances of rows to the mean row"""
    ratios: Tensor
    """lengths of reconstructions over those of rows"""
    squares: Tensor
    """squared lengths of reconstructions"""
    products: Tensor
    """dot products of rows and reconstructions"""
    cosines: Tensor
    active: Tensor
    """active latents"""
    number: Tensor
    """rows"""
    fired: Tensor
    """[m] int64 rows on which each latent is active"""

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return int(self.number.sum())

    @property
    def explained(self) -> Tensor:
        """Squared distances that the reconstructions account for."""
        return self.distances - self.errors


def _joined(sums: Sequence[Tensor], fired: Tensor) -> RowSums:
    errors, distances, ratios, squares, products, cosines, active, number = torch.stack(
        list(sums), 1
    )
    return RowSums(errors, distances, ratios, squares, products, cosines, active, number, fired)


def sums_of_sae(sae: SAE, texts: Sequence[Tensor], mean: Tensor) -> RowSums:
    """Sum over the rows [n, d] of each context; `mean` [d] is that of all rows."""
    fired = torch.zeros(sae.m, dtype=torch.int64)
    parts = []
    with torch.no_grad():
        for x in texts:
            code = code_of(sae, x)
            made = sae.decode(code, x.to(sae.W_dec)).to(x)
            active = code.indices[code.values > 0].cpu()
            fired += torch.bincount(active, minlength=sae.m)
            parts.append(_context_sums(x, made, mean, len(active)))
    return _joined(parts, fired)


def sums_of_mean(texts: Sequence[Tensor], mean: Tensor) -> RowSums:
    """Sum where the mean row stands in place of each."""
    parts = [_context_sums(x, mean.expand_as(x), mean, 0) for x in texts]
    return _joined(parts, torch.zeros(0, dtype=torch.int64))


def _context_sums(x: Tensor, made: Tensor, mean: Tensor, active: int) -> Tensor:
    """[8] float64: of one context, in the order of `RowSums`."""
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
