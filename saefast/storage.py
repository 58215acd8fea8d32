"""SAEs on disk: a SAELens v6 inference folder, written whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.ops import checks
from saefast.sae import SAE

FORMATS = ("sae_lens",)
_SAE_LENS_VERSION = "6.54.12"  # whose rules for cfg.json are followed


def save_sae(sae: SAE, path: str | Path, format: str = "sae_lens") -> Path:
    """Write `sae` as the folder `path`, replacing one that is there; returns the path.

    The new folder is complete and on the disk before it gets its name, and the old one is removed
    last: killed between the two, a process leaves both, the old one under a name with a dot.
    """
    from safetensors.torch import save_file

    checks.one_of("format", format, FORMATS)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": sae.W_enc.detach().T.contiguous(),
        "b_enc": sae.b_enc.detach().contiguous(),
        "W_dec": sae.W_dec.detach().contiguous(),
        "b_dec": sae.b_dec.detach().contiguous(),
    }
    config = {
        "architecture": "topk",
        "d_in": sae.d,
        "d_sae": sae.m,
        "k": sae.k,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"sae_lens_version": _SAE_LENS_VERSION},
    }
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        save_file(tensors, temporary / "sae_weights.safetensors")
        (temporary / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in ("sae_weights.safetensors", "cfg.json"):
            _flush(temporary / name)
        temporary.chmod(0o755)
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def load_sae(path: str | Path, format: str = "auto") -> SAE:
    """Read an SAE that `save_sae` or SAELens (TopK, version 6) wrote."""
    checks.one_of("format", format, ("auto", *FORMATS))
    folder = Path(path)
    config = _read_config(folder / "cfg.json")
    tensors = _read_tensors(folder / "sae_weights.safetensors")
    unsupported = {
        "architecture": "topk",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    for key, supported in unsupported.items():
        if config.get(key, supported) != supported:
            raise ValueError(
                f"{folder / 'cfg.json'}: {key} must be {supported!r} to be loaded, got "
                f"{config[key]!r}"
            )
    d, m = config["d_in"], config["d_sae"]
    shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,)}
    for name, shape in shapes.items():
        where = f"{folder / 'sae_weights.safetensors'}: {name}"
        if name not in tensors:
            raise ValueError(f"{where} is missing; the file holds {', '.join(sorted(tensors))}")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{where} must have shape {shape}, as cfg.json says, got "
                f"{tuple(tensors[name].shape)}"
            )
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{where} holds NaN or infinity")
    sae = SAE(d, m, k=config["k"], seed=0, dtype=tensors["W_dec"].dtype)
    with torch.no_grad():
        sae.W_enc.copy_(tensors["W_enc"].T)
        for name in ("b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(tensors[name])
    return sae


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a SAELens folder holds cfg.json")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    missing = [key for key in ("d_in", "d_sae", "k") if not isinstance(config.get(key), int)]
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


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _replace(new: Path, path: Path) -> None:
    """Put the folder `new` where `path` is; what was there is removed last."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
    path.rename(old / path.name)
    new.rename(path)
    shutil.rmtree(old)
