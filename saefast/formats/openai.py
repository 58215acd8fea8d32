"""Files of openai/sparse_autoencoder: one torch file; TopK implies normalised rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saefast.formats.source import SourceFile
from saefast.formats.tensor_files import write_torch
from saefast.formats.weights import SAEWeights, fitted

NAME = "openai"
FILE = "autoencoder.pt"
_FREQUENCY = "latents_activation_frequency"
_STATISTICS = ("stats_last_nonzero", _FREQUENCY, "latents_mean_square")
_TIED = "decoder.linear.weight"


def recognises(found: SourceFile) -> bool:
    """Return whether it has the two biases with the format's names."""
    return found.has("encoder.weight", "pre_bias", "latent_bias")


def read(found: SourceFile) -> SAEWeights:
    """Read a ReLU or TopK SAE; rows of TopK are normalised, which the file does not state."""
    w_enc = found.take("encoder.weight", None, None)
    m, d = w_enc.shape
    tied = found.has(_TIED)
    decoder = _TIED if tied else "decoder.weight"
    found.nothing_but("encoder.weight", decoder, "pre_bias", "latent_bias", *_STATISTICS)
    activation = found.values.get("activation", "ReLU")
    state = found.values.get("activation_state_dict")
    state = state if isinstance(state, Mapping) else {}
    if activation == "TopK":
        k, after = state.get("k", found.k), state.get("postact_fn", "ReLU")
        if isinstance(k, bool) or not isinstance(k, int):
            raise ValueError(f"{found.path}: activation_state_dict must give k, got {k!r}")
        variant, normalise = "topk", "layer_norm"
    else:
        variant, normalise, k, after = "relu", "none", None, activation
    if after != "ReLU":
        raise ValueError(
            f"{found.path}: activation must be ReLU, or TopK of ReLU, to be loaded, got {after!r}; "
            f"negative values are never active in saefast"
        )
    w_dec = found.take(decoder, m, d) if tied else found.take(decoder, d, m).T
    frequency = found.optional(_FREQUENCY, m)
    # Frequencies are initialised with ones.
    counted = frequency is not None and bool((frequency != 1).any())
    return SAEWeights(
        variant=variant,
        k=k,
        W_enc=w_enc,
        b_enc=found.take("latent_bias", m),
        W_dec=w_dec,
        b_dec=found.take("pre_bias", d),
        normalise=normalise,
        firing_rate=frequency if counted else None,
    )


def write(parts: SAEWeights, folder: Path) -> None:
    """Write a file that `Autoencoder.from_state_dict` reads."""
    normalise = "layer_norm" if parts.variant == "topk" else "none"
    parts = fitted(parts, NAME, ("topk", "relu"), centred=True, normalise=(normalise,))
    rate = parts.firing_rate
    contents: dict[str, Any] = {
        "pre_bias": parts.b_dec,
        "latent_bias": parts.b_enc,
        "stats_last_nonzero": torch.zeros(parts.m, dtype=torch.int64),
        _FREQUENCY: torch.ones(parts.m) if rate is None else rate.float(),
        "latents_mean_square": torch.zeros(parts.m),
        "encoder.weight": parts.W_enc,
        "decoder.weight": parts.W_dec.T,
        "activation": "TopK" if parts.variant == "topk" else "ReLU",
        "activation_state_dict": {},
    }
    if parts.variant == "topk":
        contents["activation_state_dict"] = {"k": parts.k, "postact_fn": "ReLU"}
    write_torch(folder / FILE, contents)
