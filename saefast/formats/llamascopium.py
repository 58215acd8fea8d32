"""Files of llamascopium (formerly lm-saes): config.json beside sae_weights, or hyperparams.json."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.disk.atomic import write_tensors
from saefast.disk.tables import write_json
from saefast.formats.source import SourceFile, positive
from saefast.formats.weights import SAEWeights, fitted, scaled_inputs, scaled_values, unit_decoder

NAME = "llamascopium"
FILE = None
_NORM = "dataset_average_activation_norm."
_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
_NAMES = (
    ("W_E", "b_E", "W_D", "b_D"),
    ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
)
_RELEASED = "jump_relu_threshold"
"""Threshold shared by all latents: the mark of Llama Scope releases.

The norms of their data set are folded in before the threshold applies.
"""
_OWN = (
    "d_model",
    "expansion_factor",
    "d_sae",
    "use_decoder_bias",
    "act_fn",
    "norm_activation",
    "sparsity_include_decoder_norm",
    "top_k",
    "use_glu_encoder",
    "apply_decoder_bias_to_pre_encoder",
    "device",
    "dtype",
    _RELEASED,
    "dataset_average_activation_norm",
)


def recognises(found: SourceFile) -> bool:
    """Return whether it has the format's names of weights, or linear layers and its config."""
    linear = found.has("encoder.weight", "decoder.weight") and "d_model" in found.config
    return linear or found.has("W_E", "W_D") or isinstance(found.values.get("sae"), dict)


def read(found: SourceFile) -> SAEWeights:
    """Read an SAE of raw activations; a norm measured on the data set is folded in."""
    held = found.values.get("sae")
    if isinstance(held, dict):
        tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        found = replace(found, tensors=tensors)
    found.refuse("sae_type", ("sae",), "only plain SAEs and transcoders are supported", "sae")
    found.refuse("use_glu_encoder", (False,), "gated linear encoders are not supported", False)
    older = found.has("encoder.weight")
    w_enc, b_enc, w_dec, b_dec = _NAMES[older]
    found.nothing_but(w_enc, b_enc, w_dec, b_dec, *_THRESHOLDS, prefixes=(_NORM,))
    d, m = found.setting("d_model", int), _latents(found)
    parts = SAEWeights(
        variant="relu",
        W_enc=found.take(w_enc, m, d) if older else found.take(w_enc, d, m).T,
        b_enc=found.take(b_enc, m),
        W_dec=found.take(w_dec, d, m).T if older else found.take(w_dec, m, d),
        b_dec=_decoder_bias(found, b_dec, d),
        centred=found.setting("apply_decoder_bias_to_pre_encoder", bool, False),
        transcodes=found.config.get("hook_point_in") != found.config.get("hook_point_out"),
        metadata={NAME: {k: v for k, v in found.config.items() if k not in _OWN}},
        dtype=torch.float32,  # dtype of the computation, regardless of the file's dtype
    )
    if parts.transcodes:
        why = "a transcoder's b_dec belongs to its output, not to its input"
        found.refuse("apply_decoder_bias_to_pre_encoder", (False,), why, False)
    by_norm = found.setting("sparsity_include_decoder_norm", bool, True)
    if _RELEASED not in found.config:
        return _of_raw_activations(found, _activated(found, parts, by_norm))
    parts = _of_raw_activations(found, parts)
    return _activated(found, unit_decoder(parts) if by_norm else parts, by_norm=False)


def write(parts: SAEWeights, folder: Path) -> None:
    """Write an SAE for inference, with no normalisation by the data set left to do."""
    variants = ("topk", "relu", "jumprelu")
    parts = fitted(parts, NAME, variants, centred=False, normalise=("none", "norm"), by_norm=True)
    tensors = {"W_E": parts.W_enc.T, "b_E": parts.b_enc, "W_D": parts.W_dec, "b_D": parts.b_dec}
    if parts.threshold is not None:
        tensors[_THRESHOLDS[0]] = parts.threshold.log()
    kept = {"sae_type": "sae", "use_triton_kernel": False} | parts.metadata_of(NAME)
    for hook in ("hook_point_in", "hook_point_out"):
        kept.setdefault(hook, hook.removeprefix("hook_point_") if parts.transcodes else "in")
    for point in {str(kept["hook_point_in"]), str(kept["hook_point_out"])}:
        tensors[_NORM + point] = torch.ones(())
    write_tensors(folder / "sae_weights.safetensors", tensors)
    config: dict[str, Any] = {
        "d_model": parts.d,
        "expansion_factor": _expansion(parts.m, parts.d),
        "use_decoder_bias": True,
        "act_fn": parts.variant,
        "norm_activation": "inference" if parts.normalise == "none" else "token-wise",
        "sparsity_include_decoder_norm": parts.by_norm,
        "top_k": parts.k,
        "use_glu_encoder": False,
    }
    write_json(folder / "config.json", kept | config)


def _expansion(m: int, d: int) -> float:
    """Return a factor with int(d * factor) == m, which m / d may miss by rounding."""
    factor = m / d
    return factor if int(d * factor) == m else (m + 0.5) / d


def _latents(found: SourceFile) -> int:
    recorded = found.setting("d_sae", int, None)
    factor = positive(found.config.get("expansion_factor"))
    if recorded is not None:
        return int(recorded)
    if factor is None:
        raise ValueError(f"{found.config_name} must give expansion_factor as a positive number")
    return int(found.setting("d_model", int) * factor)


def _decoder_bias(found: SourceFile, name: str, d: int) -> Tensor:
    if found.setting("use_decoder_bias", bool, True):
        return found.take(name, d)
    return torch.zeros(d)


def _activated(found: SourceFile, parts: SAEWeights, by_norm: bool) -> SAEWeights:
    """Return `parts` with the variant and threshold of the config.

    Where `by_norm`, latents are selected by values times the norms of the decoder's rows.
    """
    kind = str(found.config.get("act_fn", "relu")).lower()
    threshold = _threshold(found, kind, parts.m)
    if kind == "topk" and threshold is None:
        return replace(parts, variant="topk", k=found.setting("top_k", int), by_norm=by_norm)
    if kind == "relu":  # scaling by a norm does not change which values are positive
        return parts
    if threshold is None:
        raise ValueError(
            f"{found.config_name}: act_fn must be relu, jumprelu, topk or batchtopk to be loaded, "
            f"got {kind!r}"
        )
    k = found.setting("top_k", int, None)  # has no effect here, and may be out of range
    parts = replace(parts, k=k if k is not None and 1 <= k <= parts.m else None)
    if kind == "batchtopk" and not by_norm:
        return replace(parts, variant="batchtopk", threshold=threshold)
    if by_norm:  # value * norm > threshold
        norms = torch.linalg.vector_norm(parts.W_dec.double(), dim=1)
        # A latent with norm zero is never active: it gets the largest threshold.
        never = torch.finfo(torch.float32).max
        threshold = torch.where(norms > 0, threshold / norms, never).clamp(max=never)
    return replace(parts, variant="jumprelu", threshold=threshold * torch.ones(parts.m))


def _threshold(found: SourceFile, kind: str, m: int) -> Tensor | None:
    """Return the threshold [] or [m], float64; for topk, too, if converted to jumprelu since."""
    released = positive(found.config.get(_RELEASED))
    if kind in ("jumprelu", "topk") and released is not None:
        return torch.tensor(released, dtype=torch.float64)
    if kind == "batchtopk":
        if found.threshold is None:
            raise ValueError(
                f"{found.config_name}: act_fn is 'batchtopk', so which latents are active depends "
                f"on the whole batch; give load_sae a threshold, or convert the SAE to jumprelu "
                f"with llamascopium"
            )
        return torch.tensor(found.threshold, dtype=torch.float64)
    if kind != "jumprelu":
        return None
    logged = next((name for name in _THRESHOLDS if found.has(name)), None)
    if logged is None:
        raise ValueError(
            f"{found.path}: {_THRESHOLDS[0]} is missing, and {found.config_name} gives no positive "
            f"{_RELEASED}"
        )
    return found.take(logged, m).double().exp()


def _of_raw_activations(found: SourceFile, parts: SAEWeights) -> SAEWeights:
    kind = found.config.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return parts
    if kind == "token-wise" and not parts.transcodes:
        return replace(parts, normalise="norm")
    if kind != "dataset-wise":
        raise ValueError(
            f"{found.config_name}: norm_activation must be inference, dataset-wise or (for an SAE, "
            f"not a transcoder) token-wise to be loaded, got {kind!r}; other normalisations depend "
            f"on the batch"
        )
    hooks = [found.config.get(key) for key in ("hook_point_in", "hook_point_out")]
    older = found.config.get("dataset_average_activation_norm")
    scales = []
    for hook, key in zip(hooks, ("in", "out"), strict=True):
        norm = found.scalar(f"{_NORM}{hook}")
        if norm is None and isinstance(older, dict):
            norm = older.get(key)
        norm = positive(norm)
        if norm is None:
            raise ValueError(
                f"{found.path}: {_NORM}{hook} must be a positive number for "
                f"norm_activation='dataset-wise'"
            )
        scales.append(parts.d**0.5 / norm)
    # As in the library's own folding: values are on the scale of the activations.
    return scaled_values(scaled_inputs(parts, *scales), 1 / scales[0])
