"""SAELens: inference folders (our own, too), training checkpoints, and configs from before 6."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.atomic import write_tensors
from saefast.formats.found import Found, read_json
from saefast.formats.parts import Parts, fitted, scaled_inputs, unit_decoder, whitened_inputs
from saefast.formats.tensor_files import read_tensors
from saefast.formats.writing import write_json

NAME = "sae_lens"
FILE = None
_VERSION = "6.54.12"  # whose rules for cfg.json are followed

_ARCHITECTURES = {
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "relu": "standard",
    "gated": "gated",
}
"""What SAELens calls each variant in inference; the first of those of one name is what it is when
nothing else says so"""
_TRAINED_AS = {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}
"""What only its checkpoints hold: one threshold, `topk_threshold`"""
_NORMALISATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "norm"}
_SCALED = ("expected_average_only_in", "covariance_whitening")
_NEVER = 1e-10  # added to firing rates before their logarithm
_HELD = ("W_enc", "W_dec", "b_dec", "b_enc", "b_gate", "b_mag", "r_mag", "threshold")
_HELD_SOMETIMES = ("W_skip", "topk_threshold", "log_threshold", "scaling_factor")
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_SETTINGS = {
    "architecture",
    "d_in",
    "d_sae",
    "d_out",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "k",
    "rescale_acts_by_decoder_norm",
    "metadata",
}
"""What stands at the top of a config since 6"""


def recognises(found: Found) -> bool:
    """A cfg.json beside encoder and decoder; sparsify's has another encoder."""
    named = found.config_path is not None and found.config_path.name == "cfg.json"
    return found.has("W_enc", "W_dec") and (named or {"d_in", "d_sae"} <= found.config.keys())


def read(found: Found) -> Parts:
    """What SAELens would compute, scaling of activations included."""
    if found.config_path is None:
        raise FileNotFoundError(f"{found.config_name} does not exist; a SAELens folder holds it")
    missing = [key for key in ("d_in", "d_sae") if not _whole(found.config.get(key))]
    if missing:
        raise ValueError(f"{found.config_name} must give {', '.join(missing)} as integers")
    found = replace(found, config=_as_of_6(found))
    variant, transcodes, skips = _variant_of(found)
    ours = _ours(found.config)
    if ours.get("transcodes") is True:  # written under the name of an SAE, for SAELens to read
        transcodes = True
    normalise = _normalisation(found, transcodes)
    found.refuse("reshape_activations", ("none", "hook_z"), "rows have one form here", "none")
    centred = found.setting("apply_b_dec_to_input", bool, not transcodes)
    if transcodes and centred:
        raise ValueError(
            f"{found.config_name}: apply_b_dec_to_input must be false for a transcoder, got true"
        )
    parts = _tensors(found, variant, transcodes, skips)
    parts = replace(parts, centred=centred, normalise=normalise, dtype=_dtype(found))
    parts = replace(parts, k=_k(found, variant, parts.m), metadata=_metadata(found.config))
    return replace(_of_raw_activations(found, parts), firing_rate=_firing_rate(found))


def write(parts: Parts, folder: Path) -> None:
    """An inference folder; weights first, since cfg.json says that there is an SAE."""
    variants = tuple(_ARCHITECTURES)
    parts = fitted(
        parts, NAME, variants, transcodes=True, skip=True, normalise=tuple(_NORMALISATIONS.values())
    )
    if parts.firing_rate is not None:
        sparsity = torch.log10(parts.firing_rate.float() + _NEVER)
        write_tensors(folder / "sparsity.safetensors", {"sparsity": sparsity})
    tensors = parts.tensors | {"W_enc": parts.W_enc.T}
    if parts.variant == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    if parts.threshold is not None:
        tensors["threshold"] = parts.threshold * torch.ones_like(parts.b_enc)
    write_tensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", _config(parts))


def _config(parts: Parts) -> dict[str, Any]:
    architecture, plain = _architecture(parts)
    normalisations = {ours: theirs for theirs, ours in _NORMALISATIONS.items()}
    kept = parts.metadata_of(NAME)
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": parts.d,
        "d_sae": parts.m,
        "dtype": str(parts.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": parts.centred,
        "normalize_activations": normalisations[parts.normalise],
        "reshape_activations": kept.pop("reshape_activations", "none"),
    }
    if parts.variant == "topk":
        config |= {"k": parts.k, "rescale_acts_by_decoder_norm": False}
    if parts.transcodes and not plain:
        config["d_out"] = parts.d_out
    ours: dict[str, Any] = {"variant": parts.variant, "k": parts.k}
    if parts.transcodes and plain:
        ours["transcodes"] = True
    others = {name: said for name, said in parts.metadata.items() if name != NAME}
    if others:
        ours["formats"] = others
    metadata = kept.pop("metadata", {})
    version = {"sae_lens_version": _VERSION} if not _since_6({"metadata": metadata}) else {}
    return kept | config | {"metadata": metadata | version | {"saefast": ours}}


def _architecture(parts: Parts) -> tuple[str, bool]:
    """What SAELens calls it, and whether that is a plain SAE's name.

    It has no name for a transcoder of other kinds than standard and jumprelu. One as wide as what
    it reads computes what an SAE without apply_b_dec_to_input does, so that is what it is called;
    for others we make up a name.
    """
    name, skips = _ARCHITECTURES[parts.variant], parts.W_skip is not None
    nameless = name in ("topk", "gated")
    if not (parts.transcodes or skips):
        return name, True
    if nameless and parts.d_out == parts.d and not skips:
        return name, True
    kind = "skip_transcoder" if skips else "transcoder"
    return (kind if name == "standard" else f"{name}_{kind}"), False


def _variant_of(found: Found) -> tuple[str, bool, bool]:
    """What SAEs of that architecture are called here, whether it transcodes, and skips."""
    config = found.config
    architecture = str(config["architecture"])
    if architecture in _TRAINED_AS:
        return _TRAINED_AS[architecture], False, False
    transcodes = architecture.endswith("transcoder")
    skips = architecture.endswith("skip_transcoder")
    if transcodes:
        for ending in ("transcoder", "_", "skip", "_"):
            architecture = architecture.removesuffix(ending)
        architecture = architecture or "standard"
    known = {name: variant for variant, name in reversed(_ARCHITECTURES.items())}
    if architecture not in known:
        raise ValueError(
            f"{found.config_name}: architecture must be one of {', '.join(sorted(known))}, "
            f"{', '.join(_TRAINED_AS)} or a transcoder to be loaded, got {config['architecture']!r}"
        )
    if transcodes:
        found.setting("d_out", int)
    activation = config.get("activation_fn", "relu")
    if activation not in ("relu", "topk") or (activation == "topk" and architecture != "topk"):
        raise ValueError(
            f"{found.config_name}: activation_fn must be 'relu' or 'topk', got {activation!r}"
        )
    named = _ours(config).get("variant")
    fits = isinstance(named, str) and _ARCHITECTURES.get(named) == architecture
    return (named if fits and isinstance(named, str) else known[architecture]), transcodes, skips


def _tensors(found: Found, variant: str, transcodes: bool, skips: bool) -> Parts:
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
    if found.has("topk_threshold") and variant in _TRAINED_AS.values():
        optional["threshold"] = found.take("topk_threshold")
    elif _ARCHITECTURES[variant] == "jumprelu":
        logged = found.optional("log_threshold", m)
        threshold = found.take("threshold", m) if logged is None else logged.exp()
        one = variant in _TRAINED_AS.values()
        if one and bool((threshold != threshold[0]).any()):
            variant, one = "jumprelu", False  # somebody changed it since
        # It is a ReLU first: what a threshold below zero lets pass is zero anyway.
        optional["threshold"] = (threshold[0] if one else threshold).clamp(min=0)
    parts = Parts(variant, w_enc.T, w_dec, b_enc, b_dec, transcodes=transcodes, **optional)
    scale = found.optional("scaling_factor", m)
    if scale is not None and bool((scale != 1).any()):
        if not found.config.get("finetuning_scaling_factor"):
            raise ValueError(
                f"{found.path}: scaling_factor is not 1, but {found.config_name} does not say "
                f"finetuning_scaling_factor"
            )
        parts = replace(parts, W_dec=(w_dec.double() * scale[:, None]).to(w_dec.dtype))
    return parts


def _k(found: Found, variant: str, m: int) -> int | None:
    if variant == "topk":
        return int(found.setting("k", int))
    told: Any = _ours(found.config).get("k")
    if _whole(told):
        return int(told)
    details = found.config.get("metadata", {}).get("training_architecture_details")
    told = found.config.get("k", details.get("k") if isinstance(details, dict) else None)
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not 1 <= told <= m:
        return None
    return round(told)


def _normalisation(found: Found, transcodes: bool) -> str:
    allowed = ("none",) if transcodes else (*_NORMALISATIONS, *_SCALED)
    why = "what it would be undone with is not known" if transcodes else "that is not known"
    found.refuse("normalize_activations", allowed, why, "none")
    return _NORMALISATIONS.get(found.config.get("normalize_activations", "none"), "none")


def _of_raw_activations(found: Found, parts: Parts) -> Parts:
    """What a checkpoint was trained on is scaled; the scale lies beside it, and is folded in.

    So are the decoder's norms, where latents are chosen by their values times those.
    """
    kind = found.config.get("normalize_activations")
    by_norm = found.setting("rescale_acts_by_decoder_norm", bool, False)
    if by_norm and parts.variant not in ("topk", *_TRAINED_AS.values()):
        raise ValueError(
            f"{found.config_name}: rescale_acts_by_decoder_norm must be false for a "
            f"{parts.variant} SAE, got true"
        )
    if kind == "covariance_whitening":
        # Norms first: whitening changes them, which must not change what is active.
        return _whitened(found, unit_decoder(parts) if by_norm else parts)
    if kind == "expected_average_only_in":
        path = found.path.parent / "activation_scaler.json"
        factor = read_json(path).get("scaling_factor") if path.is_file() else None
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor > 0:
            raise ValueError(_not_there(found, kind, path))
        parts = scaled_inputs(parts, factor)
        if by_norm and parts.threshold is not None:
            # It is compared with values times the decoder's norms, which have just changed.
            parts = replace(parts, threshold=parts.threshold.double() / factor)
    return unit_decoder(parts) if by_norm else parts


def _whitened(found: Found, parts: Parts) -> Parts:
    path = found.path.parent / "activation_whitening.safetensors"
    if not path.is_file():
        raise ValueError(_not_there(found, "covariance_whitening", path))
    beside = replace(found, path=path, tensors=read_tensors(path, False).tensors)
    matrices = (beside.take(name, parts.d, parts.d) for name in ("matrix", "inverse_matrix"))
    return whitened_inputs(parts, beside.take("mean", parts.d), *matrices)


def _not_there(found: Found, kind: str, path: Path) -> str:
    return (
        f"{found.config_name}: normalize_activations is {kind!r}, which can be folded into the "
        f"weights only with {path.name}, as SAELens's checkpoints have it; {path} does not give it"
    )


def _firing_rate(found: Found) -> Tensor | None:
    """From the logarithms in sparsity.safetensors."""
    path = found.path.parent / "sparsity.safetensors"
    if not path.is_file():
        return None
    beside = replace(found, path=path, tensors=read_tensors(path, False).tensors)
    sparsity = beside.take("sparsity", found.config["d_sae"])
    rate = 10.0 ** sparsity.double() - _NEVER
    # Rounding of the logarithm leaves a trace of a rate of zero; 1e-12 cannot be counted.
    return rate.where(rate > 1e-12, 0.0).float()


def _as_of_6(found: Found) -> dict[str, Any]:
    """The config in the form it has since SAELens 6."""
    config = found.config
    metadata = config.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    if _since_6(config):
        return {"architecture": "standard"} | config | {"metadata": metadata}
    config = {_RENAMED.get(key, key): value for key, value in config.items()}
    config.setdefault("architecture", "standard")
    config.setdefault("apply_b_dec_to_input", True)
    if config.get("activation_fn") == "topk":
        given = config.get("activation_fn_kwargs")
        config["architecture"] = "topk"
        config.setdefault("k", given.get("k") if isinstance(given, dict) else None)
    normalised = config.get("normalize_activations")
    if normalised is None or isinstance(normalised, bool):
        config["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    if "reshape_activations" not in config:
        hook = "hook_z" in str(config.get("hook_name", ""))
        config["reshape_activations"] = "hook_z" if hook else "none"
    if str(config["architecture"]).endswith("transcoder"):
        config["apply_b_dec_to_input"] = False
    return config | {"metadata": metadata}


def _since_6(config: dict[str, Any]) -> bool:
    metadata = config.get("metadata")
    told = config.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    major = re.match(r"\d+", str(told))
    return major is not None and int(major.group()) >= 6


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """What is kept: what an SAE here does not know itself."""
    kept = {key: value for key, value in config.items() if key not in _SETTINGS}
    metadata = dict(config["metadata"])
    metadata.pop("saefast", None)
    if not _since_6(config):  # those stood at the top then
        metadata, kept = kept | metadata, {}
        metadata.pop("sae_lens_version", None)
    if config.get("reshape_activations", "none") != "none":
        kept["reshape_activations"] = config["reshape_activations"]
    if metadata:
        kept["metadata"] = metadata
    others = _ours(config).get("formats")
    return ({NAME: kept} if kept else {}) | (others if isinstance(others, dict) else {})


def _ours(config: dict[str, Any]) -> dict[str, Any]:
    """What is added to the metadata here."""
    metadata = config.get("metadata")
    ours = metadata.get("saefast") if isinstance(metadata, dict) else None
    return ours if isinstance(ours, dict) else {}


def _dtype(found: Found) -> torch.dtype | None:
    told = str(found.config.get("dtype", "")).removeprefix("torch.")
    names = ("float32", "float64", "float16", "bfloat16")
    return getattr(torch, told) if told in names else None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
