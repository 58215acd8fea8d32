"""Files of SAELens: inference folders (saefast's own, too), checkpoints, and configs before v6."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.disk.atomic import write_tensors
from saefast.disk.tables import write_json
from saefast.formats.sae_lens_config import (
    ARCHITECTURES,
    NORMALISATIONS,
    TRAINED_AS,
    as_of_6,
    config_of,
    k_of,
    metadata_of,
    ours_of,
    variant_of,
    whole,
)
from saefast.formats.source import SourceFile, positive, read_json
from saefast.formats.weights import SAEWeights, fitted, scaled_inputs, unit_decoder, whitened_inputs
from saefast.sae import K_PER_ROW

NAME = "sae_lens"
FILE = None
WriteTensors = Callable[[Path, Mapping[str, Tensor]], object]
"""Function that writes a safetensors file."""
_SCALED = ("expected_average_only_in", "covariance_whitening")
_NEVER = 1e-10  # added to firing rates before taking the logarithm
_HELD = ("W_enc", "W_dec", "b_dec", "b_enc", "b_gate", "b_mag", "r_mag", "threshold")
_HELD_SOMETIMES = ("W_skip", "topk_threshold", "log_threshold", "scaling_factor")


def recognises(found: SourceFile) -> bool:
    """Return whether cfg.json lies beside W_enc and W_dec, which excludes sparsify's files.

    One that names an architecture is enough: some that are not supported have other tensors.
    """
    named = found.config_path is not None and found.config_path.name == "cfg.json"
    if named and {"architecture", "d_in", "d_sae"} <= found.config.keys():
        return True
    return found.has("W_enc", "W_dec") and (named or {"d_in", "d_sae"} <= found.config.keys())


def read(found: SourceFile) -> SAEWeights:
    """Read an SAE that computes what SAELens would, including the scaling of activations."""
    if found.config_path is None:
        raise FileNotFoundError(
            f"{found.config_name} does not exist; every SAELens folder has this file"
        )
    missing = [key for key in ("d_in", "d_sae") if not whole(found.config.get(key))]
    if missing:
        raise ValueError(f"{found.config_name} must give {', '.join(missing)} as integers")
    found = replace(found, config=as_of_6(found))
    variant, transcodes, skips = variant_of(found)
    ours = ours_of(found.config)
    if ours.get("transcodes") is True:  # named as an SAE so that SAELens can read it
        transcodes = True
    normalise = _normalisation(found, transcodes)
    found.refuse("reshape_activations", ("none", "hook_z"), "it is not supported", "none")
    centred = found.setting("apply_b_dec_to_input", bool, not transcodes)
    if transcodes and centred:
        raise ValueError(
            f"{found.config_name}: apply_b_dec_to_input must be false for a transcoder, got true"
        )
    parts = _tensors(found, variant, transcodes, skips)
    parts = replace(parts, centred=centred, normalise=normalise, dtype=_dtype(found))
    parts = replace(parts, k=k_of(found, variant, parts.m), metadata=metadata_of(found.config))
    return replace(_of_raw_activations(found, parts), firing_rate=_firing_rate(found))


def write(parts: SAEWeights, folder: Path, write_weights: WriteTensors = write_tensors) -> None:
    """Write an inference folder, cfg.json last, since it marks the SAE as complete."""
    skips = parts.W_skip is not None
    parts = fitted(
        parts,
        NAME,
        tuple(ARCHITECTURES),
        centred=False if skips else None,
        transcodes=True,
        skip=True,
        normalise=("none",) if skips else tuple(NORMALISATIONS.values()),
    )
    # SAELens knows skip connections only as transcoders, even if input and output agree.
    parts = replace(parts, transcodes=parts.transcodes or skips)
    if parts.firing_rate is not None:
        sparsity = torch.log10(parts.firing_rate.float() + _NEVER)
        write_tensors(folder / "sparsity.safetensors", {"sparsity": sparsity})
    tensors = parts.tensors | {"W_enc": parts.W_enc.T}
    if parts.variant == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    if parts.threshold is not None:
        tensors["threshold"] = parts.threshold * torch.ones_like(parts.b_enc)
    write_weights(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", config_of(parts))


def _tensors(found: SourceFile, variant: str, transcodes: bool, skips: bool) -> SAEWeights:
    d, m = found.config["d_in"], found.config["d_sae"]
    d_out = found.config.get("d_out", d) if transcodes else d
    found.nothing_but(*_HELD, *_HELD_SOMETIMES)
    w_enc, w_dec = found.take("W_enc", d, m), found.take("W_dec", m, d_out)
    b_dec = found.take("b_dec", d_out)
    optional: dict[str, Any] = {}
    if variant == "gated":
        b_enc = found.take("b_gate", m)
        optional = {name: found.take(name, m) for name in ("b_mag", "r_mag")}
    else:
        b_enc = found.take("b_enc", m)
    if skips:
        optional["W_skip"] = found.take("W_skip", d_out, d)
    if found.has("topk_threshold") and variant in TRAINED_AS.values():
        optional["threshold"] = found.take("topk_threshold")
    elif ARCHITECTURES[variant] == "jumprelu":
        logged = found.optional("log_threshold", m)
        threshold = found.take("threshold", m) if logged is None else logged.exp()
        one = variant in TRAINED_AS.values()
        if one and bool((threshold != threshold[0]).any()):
            variant, one = "jumprelu", False  # changed after training
        # A ReLU is applied first: values between a negative threshold and zero are zero anyway.
        optional["threshold"] = (threshold[0] if one else threshold).clamp(min=0)
    parts = SAEWeights(variant, w_enc.T, w_dec, b_enc, b_dec, transcodes=transcodes, **optional)
    scale = found.optional("scaling_factor", m)
    if scale is not None and bool((scale != 1).any()):
        if not found.config.get("finetuning_scaling_factor"):
            raise ValueError(
                f"{found.path}: scaling_factor is not 1, but {found.config_name} does not say "
                f"finetuning_scaling_factor; set it to true there if the SAE was fine-tuned"
            )
        parts = replace(parts, W_dec=(w_dec.double() * scale[:, None]).to(w_dec.dtype))
    return parts


def _normalisation(found: SourceFile, transcodes: bool) -> str:
    allowed = ("none",) if transcodes else (*NORMALISATIONS, *_SCALED)
    why = "the output cannot be scaled back" if transcodes else "it is not supported"
    found.refuse("normalize_activations", allowed, why, "none")
    return NORMALISATIONS.get(found.config.get("normalize_activations", "none"), "none")


def _of_raw_activations(found: SourceFile, parts: SAEWeights) -> SAEWeights:
    """Fold the scaling of activations, read from files beside a checkpoint, into the weights.

    The norms of the decoder's rows are folded in as well if latents are selected by their values
    times these norms.

    Returns:
        Weights for unscaled activations.
    """
    kind = found.config.get("normalize_activations")
    by_norm = found.setting("rescale_acts_by_decoder_norm", bool, False)
    if by_norm and parts.variant not in (*K_PER_ROW, *TRAINED_AS.values()):
        raise ValueError(
            f"{found.config_name}: rescale_acts_by_decoder_norm must be false for a "
            f"{parts.variant} SAE, got true"
        )
    if kind == "covariance_whitening":
        # Norms first: whitening changes them, which must not change which latents are active.
        return _whitened(found, unit_decoder(parts) if by_norm else parts)
    if kind == "expected_average_only_in":
        path = found.path.parent / "activation_scaler.json"
        factor = found.input_scale
        if path.is_file():
            factor = positive(read_json(path).get("scaling_factor"))
        if factor is None:
            raise ValueError(_not_there(found, kind, path))
        parts = scaled_inputs(parts, factor)
        if by_norm and parts.threshold is not None:
            # It is compared with values times the decoder's norms, which were scaled above.
            parts = replace(parts, threshold=parts.threshold.double() / factor)
    return unit_decoder(parts) if by_norm else parts


def _whitened(found: SourceFile, parts: SAEWeights) -> SAEWeights:
    path = found.path.parent / "activation_whitening.safetensors"
    if not path.is_file():
        raise ValueError(_not_there(found, "covariance_whitening", path))
    beside = found.beside(path.name)
    matrices = (beside.take(name, parts.d, parts.d) for name in ("matrix", "inverse_matrix"))
    return whitened_inputs(parts, beside.take("mean", parts.d), *matrices)


def _not_there(found: SourceFile, kind: str, path: Path) -> str:
    return (
        f"{found.config_name}: normalize_activations is {kind!r}, which needs {path.name} of a "
        f"SAELens checkpoint to be folded into the weights; {path} does not have it"
    )


def _firing_rate(found: SourceFile) -> Tensor | None:
    """Return the firing rates [m] float32 from the logarithms in sparsity.safetensors."""
    path = found.path.parent / "sparsity.safetensors"
    if not path.is_file():
        return None
    beside = found.beside(path.name)
    sparsity = beside.take("sparsity", found.config["d_sae"])
    if not bool((sparsity <= 1e-6).all()):
        raise ValueError(
            f"{path}: sparsity must hold logarithms of at most 0, but holds NaN or a larger value"
        )
    rate = 10.0 ** sparsity.double() - _NEVER
    # Rounding of the logarithm leaves a trace of a zero rate; counted rates exceed 1e-12.
    return rate.where(rate > 1e-12, 0.0).float()


def _dtype(found: SourceFile) -> torch.dtype | None:
    recorded = str(found.config.get("dtype", "")).removeprefix("torch.")
    names = ("float32", "float64", "float16", "bfloat16")
    return getattr(torch, recorded) if recorded in names else None
