"""Files of the BatchTopK repository: sae.pt and config.json, with SAELens's orientation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saefast.disk.tables import write_json
from saefast.formats.source import SourceFile
from saefast.formats.tensor_files import write_torch
from saefast.formats.weights import SAEWeights, fitted

NAME = "batch_topk"
FILE = None
_VARIANTS = {"topk": "topk", "batchtopk": "batchtopk", "vanilla": "relu", "jumprelu": "jumprelu"}
_THRESHOLD = "jumprelu.log_threshold"
_OWN = ("act_size", "dict_size", "top_k", "sae_type", "input_unit_norm", "tied_weights", "dtype")


def recognises(found: SourceFile) -> bool:
    """Return whether the config has the format's names of sizes."""
    return found.has("W_enc", "b_dec") and {"act_size", "dict_size"} <= found.config.keys()


def read(found: SourceFile) -> SAEWeights:
    """Read an SAE; without use_encoder_bias, b_enc of TopK and BatchTopK is set to zero.

    The reference code of these two classes does not add b_enc, although the file holds one.

    Returns:
        Weights of the SAE.
    """
    kind = found.config.get("sae_type")
    if not isinstance(kind, str) or kind not in _VARIANTS:
        raise ValueError(
            f"{found.config_name}: sae_type must be one of {', '.join(_VARIANTS)} to be loaded, "
            f"got {kind!r}"
        )
    variant = _VARIANTS[kind]
    d, m = found.setting("act_size", int), found.setting("dict_size", int)
    found.refuse("activation", ("relu",), "other activations are not supported", "relu")
    found.nothing_but("W_enc", "W_dec", "b_enc", "b_dec", "num_batches_not_active", _THRESHOLD)
    w_enc, b_enc = found.take("W_enc", d, m).T, found.take("b_enc", m)
    tied = found.setting("tied_weights", bool, False) and variant in ("topk", "batchtopk")
    if variant in ("topk", "batchtopk") and not found.setting("use_encoder_bias", bool, False):
        b_enc = torch.zeros_like(b_enc)
    parts = SAEWeights(
        variant=variant,
        k=found.setting("top_k", int) if variant in ("topk", "batchtopk") else None,
        W_enc=w_enc,
        b_enc=b_enc,
        W_dec=w_enc if tied else found.take("W_dec", m, d),
        b_dec=found.take("b_dec", d),
        centred=variant != "jumprelu",
        normalise="layer_norm" if found.setting("input_unit_norm", bool, False) else "none",
        metadata={NAME: {k: v for k, v in found.config.items() if k not in _OWN}},
    )
    if variant == "jumprelu":
        return replace(parts, threshold=found.take(_THRESHOLD, m).double().exp())
    if variant != "batchtopk":
        return parts
    if found.threshold is None:
        raise ValueError(
            f"{found.path} is a BatchTopK SAE without a threshold, so which latents are active "
            f"depends on the whole batch. Give load_sae a threshold, for example the mean over "
            f"batches of the smallest value that is kept; load_dictionaries works without a "
            f"threshold"
        )
    return replace(parts, threshold=torch.tensor(max(found.threshold, 0.0), dtype=torch.float64))


def write(parts: SAEWeights, folder: Path) -> None:
    """Write a TopK, ReLU or JumpReLU SAE; the format's BatchTopK cannot hold a threshold."""
    parts = fitted(
        parts,
        NAME,
        ("topk", "relu", "jumprelu"),
        centred=parts.variant in ("topk", "relu"),
        normalise=("none", "layer_norm"),
    )
    kept: dict[str, Any] = {"activation": "relu"} | parts.metadata_of(NAME)
    if parts.variant == "topk":
        kept["use_encoder_bias"] = bool(parts.b_enc.any())
    contents: dict[str, Any] = {
        "W_enc": parts.W_enc.T,
        "W_dec": parts.W_dec,
        "b_enc": parts.b_enc,
        "b_dec": parts.b_dec,
    }
    if parts.threshold is not None:
        contents[_THRESHOLD] = parts.threshold.log()
    write_torch(folder / "sae.pt", contents)
    kinds = {variant: kind for kind, variant in _VARIANTS.items()}
    config = {
        "act_size": parts.d,
        "dict_size": parts.m,
        "top_k": parts.k,
        "sae_type": kinds[parts.variant],
        "input_unit_norm": parts.normalise == "layer_norm",
        "tied_weights": False,
        "dtype": str(parts.W_enc.dtype),
    }
    write_json(folder / "config.json", kept | config)
