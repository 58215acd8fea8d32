"""Fast sparse autoencoders, and which of their features to trust."""

from importlib.metadata import version as _version

from saefast import reference
from saefast.angles import principal_angles
from saefast.auxk import AuxK
from saefast.config import TrainConfig
from saefast.contributions import Contributions, contribution_r2
from saefast.covariance import activation_covariance
from saefast.info import build_info
from saefast.match import match_features
from saefast.match_all import match_all
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.rules import Penalty, Rules
from saefast.sae import SAE
from saefast.step import FusedStep
from saefast.storage import load_sae, save_sae
from saefast.subspace import fit_subspaces
from saefast.subspace_results import Subspaces
from saefast.train import train_saes
from saefast.types import Dictionary, Matches, SparseCode, ThresholdCode

__version__ = _version("saefast")

__all__ = [
    "SAE",
    "AuxK",
    "Contributions",
    "Dictionary",
    "FusedStep",
    "Matches",
    "Penalty",
    "Rules",
    "SparseCode",
    "Subspaces",
    "ThresholdCode",
    "TrainConfig",
    "__version__",
    "activation_covariance",
    "build_info",
    "contribution_r2",
    "fit_subspaces",
    "load_sae",
    "match_all",
    "match_features",
    "principal_angles",
    "reference",
    "save_sae",
    "sparse_decode",
    "threshold_encode",
    "topk_encode",
    "train_saes",
]
