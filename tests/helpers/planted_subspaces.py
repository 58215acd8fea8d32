"""Dictionaries in known subspaces, fitted without draws and progress bars."""

import torch
from helpers.strategies import normal
from torch import Tensor

import saefast
from saefast import Subspaces


def random_subspace(r: int, d: int, seed: int) -> Tensor:
    """Draw [r, d] orthonormal rows."""
    return torch.linalg.qr(normal((d, r), seed, torch.float64)).Q.T


def in_subspace(basis: Tensor, m: int, seed: int) -> Tensor:
    return normal((m, len(basis)), seed, torch.float64) @ basis


def fit(dictionaries, groups=None, **options) -> Subspaces:
    """Fit subspaces, by default without draws and progress bars."""
    groups = groups or [{"all": torch.ones(len(each)).bool()} for each in dictionaries]
    options = {"nulls": ["haar"], "progress": False} | options
    return saefast.fit_subspaces(dictionaries, groups=groups, **options)


def groups_of(m: int, seeds: int = 2) -> list[dict[str, Tensor]]:
    return [{"all": torch.ones(m).bool()}] * seeds
