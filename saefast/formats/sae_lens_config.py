"""Settings in SAELens's cfg.json, before and since version 6."""

import re
from typing import Any

from saefast.formats.source import SourceFile
from saefast.formats.weights import SAEWeights
from saefast.sae import K_PER_ROW

_NAME = "sae_lens"
_VERSION = "6.54.12"  # version whose rules for cfg.json are followed

ARCHITECTURES = {
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "relu": "standard",
    "gated": "gated",
}
"""SAELens's name of each variant in inference.

Where variants share a name, the first is assumed unless the metadata says otherwise.
"""
TRAINED_AS = {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}
"""Variants of SAELens's checkpoints only, with a single threshold, `topk_threshold`."""
NORMALISATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "norm"}
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
"""Keys at the top level of a config since version 6."""


def config_of(parts: SAEWeights) -> dict[str, Any]:
    """Return the config of an inference folder."""
    architecture, plain = _architecture(parts)
    normalisations = {ours: theirs for theirs, ours in NORMALISATIONS.items()}
    kept = parts.metadata_of(_NAME)
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
    if parts.variant in K_PER_ROW:
        config |= {"k": parts.k, "rescale_acts_by_decoder_norm": False}
    if parts.transcodes and not plain:
        config["d_out"] = parts.d_out
    ours: dict[str, Any] = {"variant": parts.variant, "k": parts.k}
    if parts.transcodes and plain:
        ours["transcodes"] = True
    others = {name: value for name, value in parts.metadata.items() if name != _NAME}
    if others:
        ours["formats"] = others
    metadata = kept.pop("metadata", {})
    version = {"sae_lens_version": _VERSION} if not _since_6({"metadata": metadata}) else {}
    return kept | config | {"metadata": metadata | version | {"saefast": ours}}


def _architecture(parts: SAEWeights) -> tuple[str, bool]:
    """Return SAELens's name of the architecture, and whether it is the name of a plain SAE.

    SAELens names only standard and jumprelu transcoders. Another one with d_out == d computes what
    an SAE without apply_b_dec_to_input does, and gets the name of that; for the rest a name is made
    up.
    """
    name, skips = ARCHITECTURES[parts.variant], parts.W_skip is not None
    nameless = name in (*K_PER_ROW, "gated") and parts.d_out == parts.d and not skips
    if nameless or not parts.transcodes:
        return name, True
    kind = "skip_transcoder" if skips else "transcoder"
    return (kind if name == "standard" else f"{name}_{kind}"), False


def variant_of(found: SourceFile) -> tuple[str, bool, bool]:
    """Return the variant of the architecture, whether it transcodes, and whether it skips."""
    config = found.config
    architecture = str(config["architecture"])
    if architecture in TRAINED_AS:
        return TRAINED_AS[architecture], False, False
    transcodes = architecture.endswith("transcoder")
    skips = architecture.endswith("skip_transcoder")
    if transcodes:
        for ending in ("transcoder", "_", "skip", "_"):
            architecture = architecture.removesuffix(ending)
        architecture = architecture or "standard"
    known = {name: variant for variant, name in reversed(ARCHITECTURES.items())}
    if architecture not in known:
        raise ValueError(
            f"{found.config_name}: architecture must be one of {', '.join(sorted(known))}, "
            f"{', '.join(TRAINED_AS)} or a transcoder to be loaded, got {config['architecture']!r}"
        )
    if transcodes:
        found.setting("d_out", int)
    activation = config.get("activation_fn", "relu")
    if activation not in ("relu", "topk") or (activation == "topk" and architecture != "topk"):
        raise ValueError(
            f"{found.config_name}: activation_fn must be 'relu' or 'topk', got {activation!r}"
        )
    named = ours_of(config).get("variant")
    fits = isinstance(named, str) and ARCHITECTURES.get(named) == architecture
    return (named if fits and isinstance(named, str) else known[architecture]), transcodes, skips


def k_of(found: SourceFile, variant: str, m: int) -> int | None:
    """Return k: the number of active latents, or the target of training if k is not decisive."""
    if variant in K_PER_ROW:
        return int(found.setting("k", int))
    recorded: Any = ours_of(found.config).get("k")
    if whole(recorded):
        return int(recorded)
    details = found.config.get("metadata", {}).get("training_architecture_details")
    recorded = found.config.get("k", details.get("k") if isinstance(details, dict) else None)
    if (
        isinstance(recorded, bool)
        or not isinstance(recorded, (int, float))
        or not 1 <= recorded <= m
    ):
        return None
    return round(recorded)


def as_of_6(found: SourceFile) -> dict[str, Any]:
    """Return the config in the form of version 6."""
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
    recorded = config.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    major = re.match(r"\d{1,9}", str(recorded))
    return major is not None and int(major.group()) >= 6


def metadata_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a `SAE` does not represent itself."""
    kept = {key: value for key, value in config.items() if key not in _SETTINGS}
    metadata = dict(config["metadata"])
    metadata.pop("saefast", None)
    if not _since_6(config):  # before version 6 they were at the top level
        metadata, kept = kept | metadata, {}
        metadata.pop("sae_lens_version", None)
    if config.get("reshape_activations", "none") != "none":
        kept["reshape_activations"] = config["reshape_activations"]
    if metadata:
        kept["metadata"] = metadata
    others = ours_of(config).get("formats")
    return ({_NAME: kept} if kept else {}) | (others if isinstance(others, dict) else {})


def ours_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that saefast adds to the metadata."""
    metadata = config.get("metadata")
    ours = metadata.get("saefast") if isinstance(metadata, dict) else None
    return ours if isinstance(ours, dict) else {}


def whole(value: object) -> bool:
    """Return whether a value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
