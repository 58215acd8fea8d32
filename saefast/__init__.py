"""Fast sparse autoencoders, and which of their features to trust."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

from saefast import reference
from saefast.activations.covariance import activation_covariance
from saefast.dictionary import sae_from
from saefast.evaluation.ablation import FeatureFunction, feature_function
from saefast.evaluation.contributions import Contributions, contribution_r2
from saefast.evaluation.regression import EffectRegression, regress_effect
from saefast.evaluation.statistics import FeatureStatistics, feature_statistics
from saefast.info import build_info
from saefast.match.all_pairs import match_all
from saefast.match.by_activations import activation_matches
from saefast.match.features import match_features
from saefast.match.plan import plan_matching
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.pool.features import pool_features
from saefast.pool.study import PoolingStudy, evaluate_pooling
from saefast.sae import SAE
from saefast.stability.clusters import Clusters, find_clusters
from saefast.stability.membership import fit_power_law, membership_counts, subset_curve
from saefast.stability.overlap import Overlap, measure_overlap
from saefast.stability.overlap_measures import Measure
from saefast.stability.score import at_threshold, score_stability, stability_curve
from saefast.storage import convert, load_dictionaries, load_sae, save_sae
from saefast.subspace.angles import principal_angles
from saefast.subspace.fit import fit_subspaces
from saefast.subspace.results import Subspaces
from saefast.train.auxk import AuxK
from saefast.train.config import TrainConfig
from saefast.train.rules import Penalty, Rules
from saefast.train.step import FusedStep
from saefast.train.train import train_saes
from saefast.types import Dictionary, Matches, SparseCode, Stability, ThresholdCode

__version__ = _version("saefast")

_ROOMS = ("integrations", "lm", "pipeline", "report", "studies", "synthetic")
"""Imported when they are named: `saefast.studies` needs no import of its own"""

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
]


def __getattr__(name: str) -> _Any:
    if name in _ROOMS:
        return _import_module(f"saefast.{name}")
    raise AttributeError(f"module 'saefast' has no attribute {name!r}")
