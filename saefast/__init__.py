"""Fast sparse autoencoders, and which of their features to trust."""

from importlib.metadata import version as _version

from saefast import reference
from saefast.auxk import AuxK
from saefast.config import TrainConfig
from saefast.info import build_info
from saefast.match import match_features
from saefast.match_all import match_all
from saefast.match_plan import plan_matching
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.rules import Penalty, Rules
from saefast.sae import SAE
from saefast.step import FusedStep
from saefast.storage import load_sae, save_sae
from saefast.train import train_saes
from saefast.types import Dictionary, Matches, SparseCode, ThresholdCode

__version__ = _version("saefast")

__all__ = [
    "SAE",
    "AuxK",
    "Dictionary",
    "FusedStep",
    "Matches",
    "Penalty",
    "Rules",
    "SparseCode",
    "ThresholdCode",
    "TrainConfig",
    "__version__",
    "build_info",
    "load_sae",
    "match_all",
    "match_features",
    "plan_matching",
    "reference",
    "save_sae",
    "sparse_decode",
    "threshold_encode",
    "topk_encode",
    "train_saes",
]
