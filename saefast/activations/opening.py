"""Open any source of activations."""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from saefast.activations.files import open_npy, open_pt, open_safetensors
from saefast.activations.iterator import IteratorActivations
from saefast.activations.protocol import Activations, ActivationSource
from saefast.activations.sae_lens import open_sae_lens
from saefast.activations.store import INDEX, StoreActivations
from saefast.activations.tensors import TensorActivations, as_rows


def open_activations(
    source: ActivationSource, *, dtype: torch.dtype | None = torch.float32
) -> Activations:
    """Open a source as activations.

    Args:
        source: a tensor or array [n, d]; a path of a store, of an .npy, .pt or .safetensors file,
            or of a folder that SAELens cached, recognised by its content; or an iterable of tensors
            or arrays [n, d] or of pairs (rows, targets). `Activations` are returned unchanged.
        dtype: dtype of the batches. None: as stored, but float32 unless that is a half precision;
            iterables, which store nothing, give float32.

    Returns:
        Activations with batches [n, d] of `dtype`.
    """
    if callable(getattr(source, "batches", None)):
        return cast(Activations, source)
    if isinstance(source, Tensor | np.ndarray):
        return TensorActivations(as_rows("activations", source), dtype=dtype)
    if isinstance(source, str | Path):
        return _open_path(Path(source), dtype)
    if isinstance(source, Iterable):
        return IteratorActivations(source, dtype=dtype or torch.float32)
    raise TypeError(
        f"activations must be a tensor or array [n, d], a path or an iterable of tensors, got "
        f"{type(source).__name__}"
    )


def _open_path(path: Path, dtype: torch.dtype | None) -> Activations:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a store written by `saefast harvest`, an .npy, .pt or "
            f".safetensors file, or a folder cached by SAELens"
        )
    if path.is_dir():
        if (path / INDEX).is_file():
            return StoreActivations(path, dtype=dtype)
        if (path / "state.json").is_file():
            return open_sae_lens(path, dtype=dtype)
        raise ValueError(
            f"{path} must be a store (with index.json) or a folder of SAELens or datasets (with "
            f"state.json), but holds neither file"
        )
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x93NUMPY"):
        return open_npy(path, dtype=dtype)
    if start[8:9] == b"{":
        return open_safetensors(path, dtype=dtype)
    if start.startswith((b"PK\x03\x04", b"\x80")) and path.suffix != ".npz":
        return open_pt(path, dtype=dtype)
    raise ValueError(
        f"{path} must be an .npy, .safetensors or .pt file, but starts with {start!r}; save the "
        f"array alone with numpy.save"
    )
