"""Source of an SAE: tensors by name, mapped into memory but not read, and their settings."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.disk.atomic import PART
from saefast.formats.tensor_files import read_tensors

CONFIGS = ("cfg.json", "config.json", "hyperparams.json")
ABOVE = ("config.json", "hyperparams.json")
"""Names of a run's settings, one folder above its checkpoints."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")
_KNOWN = (
    "sae_weights.safetensors",
    "sae.safetensors",
    "ae.pt",
    "sae.pt",
    "sae_weights.pt",
    "params.safetensors",
    "params.npz",
)
"""File names of SAEs; the first that exists is chosen."""
_COMPANIONS = (
    "sparsity.safetensors",
    "activation_whitening.safetensors",
    "activations_store_state.safetensors",
    "trainer_state.pt",
    "trainer.pt",
    "optimizer.pt",
    "scheduler.pt",
    "state.pt",
)
"""Files that other libraries write beside an SAE."""
_STATES = re.compile(r"(optimizer|lr_scheduler)_\d+\.pt|rank_\d+_state\.pt")
"""Files that sparsify writes beside the folders of its SAEs."""
_ENDS = ("pruned.safetensors", "pruned.pt", "final.safetensors", "final.pt")
"""File names of SAEs in a folder "checkpoints"; the first that exists is chosen."""
BESIDE = ("sparsity.safetensors", "activation_whitening.safetensors", "activation_scaler.json")
"""Files beside an SAE that are read with it."""
SAE_FILES = (*CONFIGS, *_KNOWN, *BESIDE)
"""Names of the files of which SAEs for inference consist."""
_CHECKPOINTS, _DISTRIBUTED = "checkpoints", "sae_weights.dcp"
_LONGEST_CONFIG = 16 << 20


@dataclass(frozen=True)
class SourceFile:
    """File of tensors and the settings that belong to it."""

    path: Path
    kind: str
    """safetensors, torch or numpy"""
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    """contents of the file other than tensors; only torch files have them"""
    config_path: Path | None
    config: dict[str, Any]
    k: int | None = None
    """k given by the user, used if the file has none"""
    threshold: float | None = None
    """threshold given by the user, used if the file has none"""
    input_scale: float | None = None
    """factor by which activations are scaled, from a registry, used if no file gives it"""
    verify: bool = True
    """whether files beside this one are compared with their checksums, too"""

    def beside(self, name: str) -> "SourceFile":
        """Return the file of tensors `name` in the same folder, with the same settings."""
        path = self.path.parent / name
        tensors = read_tensors(path, False, self.verify).tensors
        return replace(self, path=path, tensors=tensors)

    def has(self, *names: str) -> bool:
        """Return whether there are tensors of all these names."""
        return all(name in self.tensors for name in names)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Return the tensor, which must have that shape; None stands for any size.

        One of 8-bit floats, with which torch does not compute, is returned as float32.
        """
        where, value = f"{self.path}: {name}", self._sound(name)
        if not value.is_floating_point():
            raise ValueError(f"{where} must hold floats, got {value.dtype}")
        sizes = tuple(value.shape)
        fits = len(sizes) == len(shape) and all(
            wanted in (size, None) for size, wanted in zip(sizes, shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            turned = " (transposed?)" if len(shape) == 2 and sizes[::-1] == shape else ""
            comma = "," if len(shape) == 1 else ""
            raise ValueError(f"{where} must have shape ({expected}{comma}), got {sizes}{turned}")
        if 0 in sizes:
            raise ValueError(f"{where} must not be empty, got shape {sizes}")
        return value.float() if value.element_size() == 1 else value

    def optional(self, name: str, *shape: int | None) -> Tensor | None:
        """Return the tensor like `take`, or None if it is absent."""
        return self.take(name, *shape) if name in self.tensors else None

    def scalar(self, name: str) -> float | None:
        """Return the only value of the tensor, or None if it is absent."""
        if name not in self.tensors:
            return None
        value = self._sound(name)
        if value.numel() != 1:
            raise ValueError(
                f"{self.path}: {name} must be one number, got shape {tuple(value.shape)}"
            )
        return float(value)

    def integers(self, name: str) -> list[int]:
        """Return the values of an integer tensor [n]."""
        value = self._sound(name)
        if value.ndim != 1 or value.is_floating_point() or value.is_complex():
            raise ValueError(f"{self.path}: {name} must be integers [n], got {value.dtype}")
        return [int(number) for number in value.tolist()]

    def _sound(self, name: str) -> Tensor:
        """Return the tensor, which must be dense and no larger than its storage in the file."""
        where = f"{self.path}: {name}"
        if name not in self.tensors:
            raise ValueError(
                f"{where} is missing; the file holds {', '.join(sorted(self.tensors)) or 'nothing'}"
            )
        value = self.tensors[name]
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{where} must be a dense tensor, got {value.layout}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{where} has shape {tuple(value.shape)}, more than the file holds")
        return value

    def nothing_but(self, *names: str, prefixes: tuple[str, ...] = ()) -> None:
        """Reject a file with unexpected tensors, whose meaning is unknown."""
        known = set(names)
        unknown = [
            n for n in self.tensors if n not in known and not n.startswith(prefixes or ("\0",))
        ]
        if unknown:
            listed = ", ".join(repr(name) for name in sorted(unknown)[:8])
            raise ValueError(
                f"{self.path} holds tensors that are not part of its format: {listed}; their "
                f"effect is unknown"
            )

    def setting(self, key: str, kind: type, default: Any = ...) -> Any:
        """Return config[key], a bool or a 64-bit int; `default` if it is absent or null."""
        value: Any = self.config.get(key)
        if value is None and default is not ...:
            return default
        good = type(value) is kind
        if good and isinstance(value, int):
            good = abs(value) < 2**63
        if not good:
            name = {int: "an integer", bool: "true or false"}[kind]
            raise ValueError(f"{self.config_name} must give {key} as {name}, got {value!r}")
        return value

    @property
    def config_name(self) -> Path:
        """File of the settings, for error messages."""
        return self.path.parent / CONFIGS[0] if self.config_path is None else self.config_path

    def refuse(self, key: str, supported: Collection[object], why: str, default: object) -> None:
        """Reject a setting with a value other than those supported."""
        value = self.config.get(key, default)
        if value not in supported:
            expected = " or ".join(repr(value) for value in supported)
            raise ValueError(
                f"{self.config_name}: {key} must be {expected} to be loaded, got {value!r}; {why}"
            )


def find(
    path: Path,
    allow_pickle: bool = False,
    k: int | None = None,
    threshold: float | None = None,
    verify: bool = True,
) -> SourceFile:
    """Open the file of tensors at `path`, or in the folder `path`."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist{_on_the_hub(path)}")
    weights = weights_in(path) if path.is_dir() else path
    folders = (path, path) if path.is_dir() else (path.parent, path.parent.parent)
    # Checkpoints lie one folder below the settings of their run.
    candidates = [folders[0] / name for name in CONFIGS] + [folders[1] / n for n in ABOVE]
    config_path = next((candidate for candidate in candidates if candidate.is_file()), None)
    config = {} if config_path is None else read_json(config_path)
    if weights is None:
        raise FileNotFoundError(_nothing_at(path, config))
    contents = read_tensors(weights, allow_pickle, verify)
    return SourceFile(weights, *contents, config_path, config, k, threshold, verify=verify)


def weights_in(folder: Path) -> Path | None:
    """Return the file of tensors in a folder, or None if there is none."""
    inner = (folder / _CHECKPOINTS, folder / _DISTRIBUTED)
    below = [child for each in inner if each.is_dir() for child in each.iterdir()]
    files = [path for path in (*folder.iterdir(), *below) if path.is_file()]
    name = weights_among([path.relative_to(folder).as_posix() for path in files], str(folder))
    return None if name is None else folder / name


def weights_among(names: Collection[str], where: str) -> str | None:
    """Choose the file of tensors among the files of a folder.

    Args:
        names: paths of the files, relative to the folder, with "/" between their parts.
        where: name of the folder, for error messages.

    Returns:
        One of the names, or None if no file holds tensors.

    Raises:
        ValueError: several files may be the SAE, or it is stored in an unsupported way.
    """
    files = sorted(name for name in names if _may_hold_weights(name))
    known = [name for name in _KNOWN if name in files]
    if known:
        return known[0]
    ends = [f"{_CHECKPOINTS}/{name}" for name in _ENDS] if not files else []
    end = next((name for name in ends if name in names), None)
    if end is not None:
        return end
    if any(name.startswith(f"{_DISTRIBUTED}/") for name in names):
        raise ValueError(
            f"{where}/{_DISTRIBUTED} is a distributed checkpoint, which is not supported; "
            f"save it as sae_weights.safetensors with the library that wrote it"
        )
    if len(files) > 1:
        raise ValueError(
            f"{where} holds several files of tensors, {', '.join(files[:8])}; give the "
            f"path of one of them"
        )
    return files[0] if files else None


def _may_hold_weights(name: str) -> bool:
    other = name in _COMPANIONS or _STATES.fullmatch(name) is not None
    return "/" not in name and Path(name).suffix in _SUFFIXES and not other


def beside_sae(folder: Path) -> list[str]:
    """Return the names in a folder that are not of an SAE, nor of an interrupted write of one."""
    known = {*CONFIGS, *_KNOWN, *_COMPANIONS}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name.removesuffix(PART) not in known
        or not (path.is_file() or path.name.endswith(PART))
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    if path.stat().st_size > _LONGEST_CONFIG:
        raise ValueError(f"{path} is {path.stat().st_size} bytes long, too long to hold settings")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def positive(value: object) -> float | None:
    """Return a value from a file as a float if it is a positive number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        return None
    return float(value)


def _on_the_hub(path: Path) -> str:
    """Return a hint for a path that may be the name of a repository on the hub."""
    if path.is_absolute() or len(path.parts) != 2 or path.parts[0].startswith("."):
        return ""
    return (
        f"; if that is a name on the Hugging Face hub, give the folder that "
        f"saefast.download_sae({str(path)!r}) returns"
    )


def _nothing_at(path: Path, config: dict[str, Any]) -> str:
    if "d_sae" in config:
        return f"{path / _KNOWN[0]} does not exist"
    inside = sorted(child.name for child in path.iterdir() if child.is_dir())[:8]
    hint = f"; an SAE may be in one of its folders: {', '.join(inside)}" if inside else ""
    return f"{path} holds no SAE: none of {', '.join(_KNOWN)} or another file of tensors{hint}"
