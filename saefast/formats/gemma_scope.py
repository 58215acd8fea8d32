"""Files of Gemma Scope: params.npz or params.safetensors, JumpReLU with uncentred inputs.

Uncentred means that b_dec is not subtracted from x.
"""

from pathlib import Path

import torch
from torch import Tensor

from saefast.disk.tables import write_json
from saefast.formats.source import SourceFile
from saefast.formats.tensor_files import write_npz
from saefast.formats.weights import SAEWeights, fitted

NAME = "gemma_scope"
FILE = "params.npz"
_SKIP = "affine_skip_connection"
HOOKS = ("hook_name", "hook_name_out")
"""SAELens's names of the sites of input and output, for files that have no settings of their own"""


def recognises(found: SourceFile) -> bool:
    """Return whether it has a threshold and NumPy arrays, or weights with lower-case names."""
    named = found.has("w_enc", "w_dec") or (found.kind == "numpy" and found.has("W_enc", "W_dec"))
    return named and found.has("threshold", "b_enc", "b_dec")


def read(found: SourceFile) -> SAEWeights:
    """Read an SAE, or a transcoder if the widths differ or there is a skip connection."""
    names = [_name(found, name) for name in ("W_enc", "W_dec")]
    found.nothing_but(*names, "b_enc", "b_dec", "threshold", "scaling_factor", _SKIP)
    found.refuse(
        "architecture", ("jump_relu",), "other architectures are not supported", "jump_relu"
    )
    m, d_out = found.take("b_enc", None).shape[0], found.take("b_dec", None).shape[0]
    w_enc = found.take(names[0], None, m)
    d = w_enc.shape[0]
    skip = found.optional(_SKIP, d, d_out)
    scale = found.optional("scaling_factor", m)
    w_dec = found.take(names[1], m, d_out)
    if scale is not None and bool((scale != 1).any()):
        w_dec = (w_dec.double() * scale[:, None]).to(w_dec.dtype)
    # A ReLU is applied first: values between a negative threshold and zero are zero anyway.
    return SAEWeights(
        variant="jumprelu",
        W_enc=w_enc.T,
        b_enc=found.take("b_enc", m),
        W_dec=w_dec,
        b_dec=found.take("b_dec", d_out),
        threshold=found.take("threshold", m).clamp(min=0),
        W_skip=None if skip is None else skip.T,
        transcodes=skip is not None or d != d_out or _transcodes(found),
        centred=False,
        metadata={NAME: dict(found.config)} if found.config else {},
    )


def write(parts: SAEWeights, folder: Path) -> None:
    """Write the arrays of an SAE; bfloat16, which NumPy lacks, becomes float32."""
    parts = fitted(parts, NAME, ("jumprelu",), centred=False, transcodes=True, skip=True)
    arrays: dict[str, Tensor] = {
        "W_enc": parts.W_enc.T,
        "W_dec": parts.W_dec,
        "b_enc": parts.b_enc,
        "b_dec": parts.b_dec,
    }
    if parts.threshold is not None:
        arrays["threshold"] = parts.threshold
    if parts.W_skip is not None:
        arrays[_SKIP] = parts.W_skip.T
    wide = {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in arrays.items()}
    write_npz(folder / FILE, wide)
    if parts.metadata_of(NAME):
        write_json(folder / "config.json", parts.metadata_of(NAME))


def _name(found: SourceFile, name: str) -> str:
    return name if name in found.tensors else name.lower()


def _transcodes(found: SourceFile) -> bool:
    """Return whether the settings name another site for the output than for the input."""
    sites = (("hf_hook_point_in", "hf_hook_point_out"), HOOKS)
    named = [tuple(map(found.config.get, names)) for names in sites]
    return any(y is not None and x != y for x, y in named)
