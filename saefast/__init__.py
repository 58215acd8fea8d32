"""Fast sparse autoencoders, and which of their features to trust."""

from importlib.metadata import version as _version

from saefast import reference
from saefast.activation_match import activation_matches
from saefast.angles import principal_angles
from saefast.auxk import AuxK
from saefast.clusters import Clusters, find_clusters
from saefast.config import TrainConfig
from saefast.info import build_info
from saefast.match import match_features
from saefast.match_all import match_all
from saefast.membership import fit_power_law, membership_counts, subset_curve
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.overlap import Overlap, measure_overlap
from saefast.overlap_measures import Measure
from saefast.rules import Penalty, Rules
from saefast.sae import SAE
from saefast.stability import at_threshold, score_stability, stability_curve
from saefast.step import FusedStep
from saefast.storage import load_sae, save_sae
from saefast.subspace import fit_subspaces
from saefast.subspace_results import Subspaces
from saefast.train import train_saes
from saefast.types import Dictionary, Matches, SparseCode, Stability, ThresholdCode

__version__ = _version("saefast")

__all__ = [
    "SAE",
    "AuxK",
    "Clusters",
    "Dictionary",
    "FusedStep",
    "Matches",
    "Measure",
    "Overlap",
    "Penalty",
    "Rules",
    "SparseCode",
    "Stability",
    "Subspaces",
    "ThresholdCode",
    "TrainConfig",
    "__version__",
    "activation_matches",
    "at_threshold",
    "build_info",
    "find_clusters",
    "fit_power_law",
    "fit_subspaces",
    "load_sae",
    "match_all",
    "match_features",
    "measure_overlap",
    "membership_counts",
    "principal_angles",
    "reference",
    "save_sae",
    "score_stability",
    "sparse_decode",
    "stability_curve",
    "subset_curve",
    "threshold_encode",
    "topk_encode",
    "train_saes",
]
