"""Comparison of the subspaces that groups of features span, with null models."""

from saefast.subspace.angles import principal_angles
from saefast.subspace.fit import fit_subspaces
from saefast.subspace.results import Subspaces

__all__ = [
    "Subspaces",
    "fit_subspaces",
    "principal_angles",
]
