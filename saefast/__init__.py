"""Train sparse autoencoders fast, and measure which of their features are reproducible."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

from saefast import reference
from saefast.activations.covariance import activation_covariance
from saefast.damage import verify
from saefast.dictionary import Dictionary, sae_from
from saefast.evaluation import (
    Contributions,
    EffectRegression,
    FeatureFunction,
    FeatureStatistics,
    contribution_r2,
    feature_function,
    feature_statistics,
    regress_effect,
)
from saefast.hub import download_sae, push_to_hub
from saefast.info import build_info
from saefast.match import Matches, activation_matches, match_all, match_features, plan_matching
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.pool import PoolingStudy, evaluate_pooling, pool_features
from saefast.sae import SAE
from saefast.stability import (
    Clusters,
    Measure,
    Overlap,
    Stability,
    at_threshold,
    find_clusters,
    fit_power_law,
    measure_overlap,
    membership_counts,
    score_stability,
    stability_curve,
    subset_curve,
)
from saefast.storage import convert, load_dictionaries, load_sae, save_sae
from saefast.subspace import Subspaces, fit_subspaces, principal_angles
from saefast.train import AuxK, FusedStep, Penalty, Rules, TrainConfig, train_saes
from saefast.types import SparseCode, ThresholdCode

__version__ = _version("saefast")

_ROOMS = ("integrations", "lm", "pipeline", "report", "studies", "synthetic")
"""Subpackages imported on first access, so that `saefast.studies` needs no separate import."""

__all__ = [
    "SAE",
    "AuxK",
    "Clusters",
    "Contributions",
    "Dictionary",
    "EffectRegression",
    "FeatureFunction",
    "FeatureStatistics",
    "FusedStep",
    "Matches",
    "Measure",
    "Overlap",
    "Penalty",
    "PoolingStudy",
    "Rules",
    "SparseCode",
    "Stability",
    "Subspaces",
    "ThresholdCode",
    "TrainConfig",
    "__version__",
    "activation_covariance",
    "activation_matches",
    "at_threshold",
    "build_info",
    "contribution_r2",
    "convert",
    "download_sae",
    "evaluate_pooling",
    "feature_function",
    "feature_statistics",
    "find_clusters",
    "fit_power_law",
    "fit_subspaces",
    "load_dictionaries",
    "load_sae",
    "match_all",
    "match_features",
    "measure_overlap",
    "membership_counts",
    "plan_matching",
    "pool_features",
    "principal_angles",
    "push_to_hub",
    "reference",
    "regress_effect",
    "sae_from",
    "save_sae",
    "score_stability",
    "sparse_decode",
    "stability_curve",
    "subset_curve",
    "threshold_encode",
    "topk_encode",
    "train_saes",
    "verify",
]


def __getattr__(name: str) -> _Any:
    if name in _ROOMS:
        return _import_module(f"saefast.{name}")
    raise AttributeError(f"module 'saefast' has no attribute {name!r}")
