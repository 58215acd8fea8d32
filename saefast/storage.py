"""SAEs on disk: a SAELens v6 inference folder, written whole or not at all."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.atomic import write_tensors, write_whole
from saefast.ops import checks
from saefast.sae import SAE

FORMATS = ("sae_lens",)
_SAE_LENS_VERSION = "6.54.12"  # whose rules for cfg.json are followed

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
_ONE_THRESHOLD = ("batchtopk", "matryoshka")
_NEVER = 1e-10  # added to firing rates before their logarithm, as SAELens does


def save_sae(sae: SAE, path: str | Path, format: str = "sae_lens") -> Path:
    """Write `sae` as the folder `path`, replacing one that is there; returns the path.

    The new folder is complete and on the disk before it gets its name, and the old one is removed
    last: killed between the two, a process leaves both, the old one under a name with a dot.
    """
    checks.one_of("format", format, FORMATS)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        _write_files(sae, temporary)
        temporary.chmod(0o755)
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def save_into(folder: Path, sae: SAE, firing_rate: Tensor | None = None) -> None:
    """Write the files of `sae` into a folder that holds more, each whole or not at all.

    `firing_rate` [m]: on which share of tokens each latent fires.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if firing_rate is not None:
        sparsity = torch.log10(firing_rate.float() + _NEVER)
        write_tensors(folder / "sparsity.safetensors", {"sparsity": sparsity})
    _write_files(sae, folder)


def _write_files(sae: SAE, folder: Path) -> None:
    write_tensors(folder / "sae_weights.safetensors", _tensors_of(sae))
    # Last, since it says that there is an SAE.
    text = json.dumps(_config_of(sae), indent=2) + "\n"
    write_whole(folder / "cfg.json", text.encode())


def _architecture_of(sae: SAE) -> str:
    """What SAELens calls it; of a transcoder that SAELens does not have, what it would."""
    name = _ARCHITECTURES[sae.variant]
    if not sae.transcodes:
        return name
    return "transcoder" if name == "standard" else f"{name}_transcoder"


def _config_of(sae: SAE) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architecture": _architecture_of(sae),
        "d_in": sae.d,
        "d_sae": sae.m,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": not sae.transcodes,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if sae.variant == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.transcodes:
        config["d_out"] = sae.d_out
    config["metadata"] = {
        "sae_lens_version": _SAE_LENS_VERSION,
        "saefast": {"variant": sae.variant, "k": sae.k},
    }
    return config


def _tensors_of(sae: SAE) -> dict[str, Tensor]:
    tensors = {
        "W_enc": sae.W_enc.detach().T,
        "W_dec": sae.W_dec.detach(),
        "b_dec": sae.b_dec.detach(),
    }
    if sae.variant == "gated":
        more = {"b_gate": sae.b_enc, "b_mag": sae.b_mag, "r_mag": sae.r_mag}
        return tensors | {name: value.detach() for name, value in more.items()}
    tensors["b_enc"] = sae.b_enc.detach()
    if _ARCHITECTURES[sae.variant] == "jumprelu":
        assert sae.threshold is not None
        tensors["threshold"] = sae.threshold.detach() * torch.ones_like(sae.b_enc)
    return tensors


def load_sae(path: str | Path, format: str = "auto") -> SAE:
    """Read an SAE that `save_sae` or SAELens (version 6) wrote."""
    checks.one_of("format", format, ("auto", *FORMATS))
    folder = Path(path)
    config = _read_config(folder / "cfg.json")
    variant, transcodes = _variant_of(config, folder)
    unsupported = {
        "apply_b_dec_to_input": not transcodes,
        "normalize_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    for key, supported in unsupported.items():
        if config.get(key, supported) != supported:
            raise ValueError(
                f"{folder / 'cfg.json'}: {key} must be {supported!r} to be loaded, got "
                f"{config[key]!r}"
            )
    tensors = _read_tensors(folder / "sae_weights.safetensors")
    d, m = config["d_in"], config["d_sae"]
    d_out = config["d_out"] if transcodes else d
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, m), "W_dec": (m, d_out), "b_dec": (d_out,)}
    if variant == "gated":
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (m,))
    else:
        shapes["b_enc"] = (m,)
    if _ARCHITECTURES[variant] == "jumprelu":
        shapes["threshold"] = (m,)
    _check_tensors(tensors, shapes, folder / "sae_weights.safetensors")
    if variant in _ONE_THRESHOLD and bool((tensors["threshold"] != tensors["threshold"][0]).any()):
        variant = "jumprelu"  # somebody changed it since
    k = config["k"] if variant == "topk" else _ours(config).get("k", min(32, m))
    sae = SAE(
        *(d, m),
        variant=variant,
        k=k,
        seed=0,
        d_out=d_out if transcodes else None,
        dtype=tensors["W_dec"].dtype,
    )
    if variant in _ONE_THRESHOLD:
        tensors["threshold"] = tensors["threshold"][0]
    tensors["W_enc"] = tensors["W_enc"].T
    threshold = "batch_threshold" if variant in _ONE_THRESHOLD else "jump_threshold"
    ours = {"b_gate": "b_enc", "threshold": threshold}
    with torch.no_grad():
        for name in shapes:
            mine: Tensor = getattr(sae, ours.get(name, name))
            mine.copy_(tensors[name])
    return sae


def _variant_of(config: dict[str, Any], folder: Path) -> tuple[str, bool]:
    """What SAEs of that architecture are called here, and whether it is a transcoder."""
    architecture = str(config.get("architecture", "topk"))
    transcodes = architecture.endswith("transcoder")
    if transcodes:
        architecture = architecture.removesuffix("transcoder").removesuffix("_") or "standard"
    known = {name: variant for variant, name in reversed(_ARCHITECTURES.items())}
    if architecture not in known:
        raise ValueError(
            f"{folder / 'cfg.json'}: architecture must be one of {', '.join(sorted(known))} to be "
            f"loaded, got {config['architecture']!r}"
        )
    named = _ours(config).get("variant")
    fits = isinstance(named, str) and _ARCHITECTURES.get(named) == architecture
    variant = named if fits and isinstance(named, str) else known[architecture]
    missing = [("d_out", transcodes), ("k", variant == "topk")]
    for key, needed in missing:
        if needed and not isinstance(config.get(key), int):
            raise ValueError(f"{folder / 'cfg.json'} must give {key} as an integer")
    return variant, transcodes


def _ours(config: dict[str, Any]) -> dict[str, Any]:
    """What `save_sae` adds to the metadata."""
    metadata = config.get("metadata")
    ours = metadata.get("saefast") if isinstance(metadata, dict) else None
    return ours if isinstance(ours, dict) else {}


def _check_tensors(
    tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    for name, shape in shapes.items():
        where = f"{path}: {name}"
        if name not in tensors:
            raise ValueError(f"{where} is missing; the file holds {', '.join(sorted(tensors))}")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{where} must have shape {shape}, as cfg.json says, got "
                f"{tuple(tensors[name].shape)}"
            )
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{where} holds NaN or infinity")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a SAELens folder holds cfg.json")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    missing = [key for key in ("d_in", "d_sae") if not isinstance(config.get(key), int)]
    if missing:
        raise ValueError(f"{path} must give {', '.join(missing)} as integers")
    return dict(config)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _replace(new: Path, path: Path) -> None:
    """Put the folder `new` where `path` is; what was there is removed last."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
    path.rename(old / path.name)
    new.rename(path)
    shutil.rmtree(old)
