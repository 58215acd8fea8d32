"""Files of dictionary_learning: ae.pt and config.json.

ae.pt is a state dict of one of seven classes, or a backup.

Backups are read but not written: a loaded SAE has no optimiser, and the library itself cannot
resume a run. A backup becomes the file that its run would have ended with.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.disk.tables import write_json
from saefast.formats.source import SourceFile, positive
from saefast.formats.tensor_files import write_torch
from saefast.formats.weights import SAEWeights, fitted, scaled_inputs, scaled_values

NAME = "dictionary_learning"
FILE = None
_VARIANTS = {
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
}
_BIASES = {
    "AutoEncoder": "bias",
    "AutoEncoderNew": "decoder.bias",
    "GatedAutoEncoder": "decoder_bias",
}
"""Name of b_dec in classes that call it otherwise."""
_UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
_LINEAR = ("AutoEncoderTopK", "BatchTopKSAE", "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")
"""Classes whose weights have the layout of torch.nn.Linear: encoder [m, d], decoder [d, m]."""
_OWN = ("dict_class", "activation_dim", "dict_size", "k", "norm_factor")


def recognises(found: SourceFile) -> bool:
    """Return whether the file is a backup, or has a trainer's config or a class's tensor names."""
    if isinstance(found.values.get("ae"), Mapping) or isinstance(found.config.get("trainer"), dict):
        return True
    if found.kind != "torch" or found.config.keys() & {"act_size", "d_model", "d_sae"}:
        return False
    linear = found.has("encoder.weight", "decoder.weight") and not found.has("pre_bias")
    return linear or found.has("W_enc", "W_dec", "threshold")


def read(found: SourceFile) -> SAEWeights:
    """Read an SAE of any class; the factor by which a backup scales activations is folded in."""
    trainer = found.config.get("trainer", {})
    backup = found.values.get("ae")
    norm = None
    if isinstance(backup, Mapping):
        found = replace(found, tensors={n: v for n, v in backup.items() if isinstance(v, Tensor)})
        norm, own = _norm(found), found.values.get("config")
        if isinstance(own, dict) and not trainer:
            trainer = json.loads(json.dumps(own, default=str))
    if not isinstance(trainer, dict):
        raise ValueError(f"{found.config_name} must give trainer as an object, got {trainer!r}")
    beside = {key: value for key, value in found.config.items() if key == "buffer"}
    found = replace(found, config=trainer | beside)
    kind = _class_of(found)
    parts = _linear(found, kind) if kind in _LINEAR else _stacked(found, kind)
    for key, size in (("activation_dim", parts.d), ("dict_size", parts.m)):
        if found.setting(key, int, size) != size:
            raise ValueError(
                f"{found.config_name}: {key} is {trainer[key]}, but the tensors of {found.path} "
                f"say {size}; correct the config"
            )
    parts = replace(parts, centred=kind not in _UNCENTRED, metadata=_metadata(found, parts, norm))
    if _VARIANTS[kind] in ("topk", "batchtopk", "matryoshka"):
        parts = replace(parts, k=_k(found))
    if norm is None:
        return parts
    # Backups are trained on x / norm. Rescale to values on the scale of x, as in finished runs.
    return scaled_values(scaled_inputs(parts, 1 / norm), norm)


def write(parts: SAEWeights, folder: Path) -> None:
    """Write the folder of a finished trainer."""
    kept = parts.metadata_of(NAME)
    parts = fitted(parts, NAME, tuple(_VARIANTS.values()), centred=_centred(parts))
    kind = next(
        kind
        for kind, variant in _VARIANTS.items()
        if variant == parts.variant and (kind in _UNCENTRED) != parts.centred
    )
    b_dec = _BIASES.get(kind, "b_dec")
    if kind in _LINEAR:
        tensors: dict[str, Any] = {"encoder.weight": parts.W_enc, "decoder.weight": parts.W_dec.T}
        if kind != "GatedAutoEncoder":
            tensors["encoder.bias"] = parts.b_enc
    else:
        tensors = {"W_enc": parts.W_enc.T, "b_enc": parts.b_enc, "W_dec": parts.W_dec}
    tensors[b_dec] = parts.b_dec
    if kind == "GatedAutoEncoder":
        tensors |= {"gate_bias": parts.b_enc, "mag_bias": parts.b_mag, "r_mag": parts.r_mag}
    elif parts.variant == "jumprelu":
        tensors["threshold"] = parts.threshold
    elif parts.variant != "relu":
        unset = torch.tensor(kept.get("threshold", -1.0))
        threshold = unset if parts.threshold is None else parts.threshold.float()
        tensors |= {"k": torch.tensor(parts.k, dtype=torch.int32), "threshold": threshold}
    groups = kept.pop("group_sizes", None)
    if kind == "MatryoshkaBatchTopKSAE":
        fits = isinstance(groups, list) and all(isinstance(size, int) for size in groups)
        fits = fits and sum(groups) == parts.m
        tensors["group_sizes"] = torch.tensor(groups if fits else [parts.m])
    kept.pop("threshold", None)
    write_torch(folder / "ae.pt", tensors)
    trainer = {"dict_class": kind, "activation_dim": parts.d, "dict_size": parts.m, "k": parts.k}
    buffer = kept.pop("buffer", None)
    config = {"trainer": kept | trainer}
    write_json(folder / "config.json", config if buffer is None else config | {"buffer": buffer})


def _norm(found: SourceFile) -> float | None:
    """Return the number by which activations were divided, if the file gives one."""
    recorded = found.values.get("norm_factor")
    norm = positive(recorded)
    if recorded is not None and norm is None:
        raise ValueError(f"{found.path}: norm_factor must be a positive number, got {recorded!r}")
    return norm


def _centred(parts: SAEWeights) -> bool | None:
    """Return whether the variant's class subtracts b_dec; None for relu, which has two classes."""
    return None if parts.variant == "relu" else parts.variant != "jumprelu"


def _class_of(found: SourceFile) -> str:
    recorded = found.config.get("dict_class")
    if recorded is not None:
        if not isinstance(recorded, str) or recorded not in _VARIANTS:
            raise ValueError(
                f"{found.config_name}: dict_class must be one of {', '.join(_VARIANTS)} to be "
                f"loaded, got {recorded!r}"
            )
        return recorded
    marks = {
        "group_sizes": "MatryoshkaBatchTopKSAE",
        "gate_bias": "GatedAutoEncoder",
        "bias": "AutoEncoder",
        "decoder.bias": "AutoEncoderNew",
    }
    for mark, kind in marks.items():
        if found.has(mark):
            return kind
    if found.has("W_enc", "threshold"):
        return "JumpReluAutoEncoder"
    raise ValueError(
        f"{found.path} may be an AutoEncoderTopK or a BatchTopKSAE, which have the same tensors; "
        f"config.json in its folder must give the class as trainer.dict_class"
    )


def _linear(found: SourceFile, kind: str) -> SAEWeights:
    w_enc = found.take("encoder.weight", None, None)
    m, d = w_enc.shape
    b_dec = _BIASES.get(kind, "b_dec")
    known = {"encoder.weight", "encoder.bias", "decoder.weight", b_dec}
    threshold: Tensor | None = None
    optional: dict[str, Any] = {}
    if kind == "GatedAutoEncoder":
        known = {"encoder.weight", "decoder.weight", b_dec, "gate_bias", "mag_bias", "r_mag"}
        optional = {"b_mag": found.take("mag_bias", m), "r_mag": found.take("r_mag", m)}
    elif kind not in _BIASES:
        known |= {"k", "threshold"}
    if kind == "BatchTopKSAE":
        threshold = _threshold(found)
    found.nothing_but(*known)
    return SAEWeights(
        variant=_VARIANTS[kind],
        W_enc=w_enc,
        b_enc=found.take("gate_bias" if optional else "encoder.bias", m),
        W_dec=found.take("decoder.weight", d, m).T,
        b_dec=found.take(b_dec, d),
        threshold=threshold,
        **optional,
    )


def _stacked(found: SourceFile, kind: str) -> SAEWeights:
    w_enc = found.take("W_enc", None, None)
    d, m = w_enc.shape
    found.nothing_but("W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes")
    jumps = kind == "JumpReluAutoEncoder"
    threshold = found.take("threshold", m).clamp(min=0) if jumps else _threshold(found)
    return SAEWeights(
        variant=_VARIANTS[kind],
        W_enc=w_enc.T,
        b_enc=found.take("b_enc", m),
        W_dec=found.take("W_dec", m, d),
        b_dec=found.take("b_dec", d),
        threshold=threshold,
    )


def _threshold(found: SourceFile) -> Tensor:
    """Return the threshold, [] float64.

    The library writes -1 if it is not set yet; then it is 0, and every positive value passes.
    """
    value = found.scalar("threshold")
    value = found.threshold if value is None else value
    if value is None:
        raise ValueError(
            f"{found.path}: threshold is missing, so which latents are active depends on the "
            f"whole batch; give load_sae a threshold"
        )
    if math.isnan(value):
        raise ValueError(f"{found.path}: threshold holds NaN or infinity")
    return torch.tensor(max(value, 0.0), dtype=torch.float64)


def _k(found: SourceFile) -> int:
    in_file, recorded = found.scalar("k"), found.setting("k", int, None)
    if in_file is not None and recorded is not None and in_file != recorded:
        raise ValueError(f"{found.path}: k is {in_file:g}, but {found.config_name} says {recorded}")
    known = next((k for k in (in_file, recorded, found.k) if k is not None), None)
    if known is None:
        raise ValueError(f"{found.path} does not say k; give load_sae a k")
    return int(known)


def _metadata(found: SourceFile, parts: SAEWeights, norm: float | None) -> dict[str, Any]:
    kept = {key: value for key, value in found.config.items() if key not in _OWN}
    if found.has("group_sizes"):
        groups = found.integers("group_sizes")
        if sum(groups) != parts.m or min(groups) < 1:
            raise ValueError(f"{found.path}: group_sizes must sum to {parts.m}, got {groups}")
        kept["group_sizes"] = groups
    threshold = found.scalar("threshold") if parts.variant == "topk" else None
    if threshold is not None:  # k decides, but the threshold is kept; negative means not set
        kept["threshold"] = threshold if norm is None or threshold < 0 else threshold * norm
    return {NAME: kept} if kept else {}
