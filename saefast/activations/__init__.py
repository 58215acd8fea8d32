"""Sources of activations: tensors, files, stores of shards, and iterators."""

from saefast.activations.files import open_npy, open_pt, open_safetensors
from saefast.activations.iterator import IteratorActivations
from saefast.activations.opening import open_activations
from saefast.activations.prefetch import Prefetcher
from saefast.activations.protocol import Activations, ActivationSource, Batch
from saefast.activations.sae_lens import open_sae_lens
from saefast.activations.store import StoreActivations, verify_store
from saefast.activations.tensors import TensorActivations
from saefast.activations.writer import StoreWriter

__all__ = [
    "ActivationSource",
    "Activations",
    "Batch",
    "IteratorActivations",
    "Prefetcher",
    "StoreActivations",
    "StoreWriter",
    "TensorActivations",
    "open_activations",
    "open_npy",
    "open_pt",
    "open_sae_lens",
    "open_safetensors",
    "verify_store",
]
