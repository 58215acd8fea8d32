"""Files of Qwen Scope: one torch file for each layer, with W_enc [m, d] and W_dec [d, m]."""

from pathlib import Path

from saefast.formats.source import SourceFile
from saefast.formats.tensor_files import write_torch
from saefast.formats.weights import SAEWeights, fitted

NAME = "qwen_scope"
FILE = "layer.sae.pt"


def recognises(found: SourceFile) -> bool:
    """Return whether it has four tensors and no settings; the biases' sizes fix the orientation."""
    others = found.has("threshold") or found.config.keys() & {"act_size", "d_sae", "trainer"}
    if found.kind != "torch" or not found.has("W_enc", "W_dec", "b_enc", "b_dec") or others:
        return False
    sizes = tuple(found.tensors[name].numel() for name in ("b_enc", "b_dec"))
    return tuple(found.tensors["W_enc"].shape) == sizes


def read(found: SourceFile) -> SAEWeights:
    """Read a TopK SAE with uncentred inputs; k is given only in the name of the repository."""
    found.nothing_but("W_enc", "W_dec", "b_enc", "b_dec")
    m, d = found.take("b_enc", None).shape[0], found.take("b_dec", None).shape[0]
    k = next((k for k in (found.values.get("k"), found.config.get("k"), found.k) if k), None)
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(
            f"{found.path} does not state the number of active latents; give load_sae a k: the "
            f"number after L0_ in the name of its repository"
        )
    return SAEWeights(
        variant="topk",
        k=k,
        W_enc=found.take("W_enc", m, d),
        b_enc=found.take("b_enc", m),
        W_dec=found.take("W_dec", d, m).T,
        b_dec=found.take("b_dec", d),
        centred=False,
    )


def write(parts: SAEWeights, folder: Path) -> None:
    """Write the four tensors, and k, which readers of the four ignore."""
    parts = fitted(parts, NAME, ("topk",), centred=False)
    contents = {
        "W_enc": parts.W_enc,
        "W_dec": parts.W_dec.T,
        "b_enc": parts.b_enc,
        "b_dec": parts.b_dec,
        "k": parts.k,
    }
    write_torch(folder / FILE, contents)
