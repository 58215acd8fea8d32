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
    tensors = {
        "W_enc": sae.W_enc.detach().T,
        "b_enc": sae.b_enc.detach(),
        "W_dec": sae.W_dec.detach(),
        "b_dec": sae.b_dec.detach(),
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
    write_tensors(folder / "sae_weights.safetensors", tensors)
    # Last, since it says that there is an SAE.
    write_whole(folder / "cfg.json", (json.dumps(config, indent=2) + "\n").encode())


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


def _replace(new: Path, path: Path) -> None:
    """Put the folder `new` where `path` is; what was there is removed last."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
    path.rename(old / path.name)
    new.rename(path)
    shutil.rmtree(old)
