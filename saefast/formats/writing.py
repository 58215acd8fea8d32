"""How a format's files are written: each whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saefast.atomic import write_whole, write_with


def write_json(path: Path, config: Mapping[str, Any]) -> None:
    """The settings of an SAE."""
    write_whole(path, (json.dumps(config, indent=2) + "\n").encode())


def write_torch(path: Path, contents: Mapping[str, Any]) -> None:
    """What torch.load(weights_only=True) reads."""
    own = {
        name: value.detach().contiguous().clone() if isinstance(value, torch.Tensor) else value
        for name, value in contents.items()
    }
    write_with(path, lambda part: torch.save(own, part))


def write_npz(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Arrays that are not compressed, so that they can be mapped into memory."""
    import numpy as np

    def write(part: Path) -> None:
        with part.open("wb") as file:  # np.savez would add .npz to a name
            arrays: dict[str, Any] = {name: v.detach().numpy() for name, v in tensors.items()}
            np.savez(file, **arrays)

    write_with(path, write)
