"""Files of sparsify: a folder for each hookpoint and seed with sae.safetensors and cfg.json."""

from pathlib import Path

from saefast.disk.atomic import write_tensors
from saefast.disk.tables import write_json
from saefast.formats.source import SourceFile
from saefast.formats.weights import SAEWeights, fitted

NAME = "sparsify"
FILE = None
_DEFAULTS = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "multi_topk": False,
}


def recognises(found: SourceFile) -> bool:
    """Return whether it has a linear encoder, and a decoder with the encoder's layout."""
    return found.has("encoder.weight", "W_dec")


def read(found: SourceFile) -> SAEWeights:
    """Read a TopK SAE or transcoder; a transcoder's inputs are uncentred.

    SAELens's reader differs in the last point. Files of early versions may be `signed`: they
    select latents by absolute value, which is abstopk.

    Returns:
        Weights of the SAE.
    """
    found.refuse("activation", ("topk",), "groupmax is not supported", "topk")
    d = found.setting("d_in", int)
    m = found.setting("num_latents", int, 0) or d * found.setting("expansion_factor", int)
    found.nothing_but("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip")
    skips = found.setting("skip_connection", bool, False)
    transcodes = found.setting("transcode", bool, False)
    own = ("activation", "signed", "d_in", "num_latents", "k", "skip_connection", "transcode")
    kept = {key: value for key, value in found.config.items() if key not in own}
    if skips != found.has("W_skip"):
        raise ValueError(
            f"{found.config_name}: skip_connection is {str(skips).lower()}, but {found.path} "
            f"{'lacks' if skips else 'holds'} W_skip"
        )
    return SAEWeights(
        variant="abstopk" if found.setting("signed", bool, False) else "topk",
        k=found.setting("k", int),
        W_enc=found.take("encoder.weight", m, d),
        b_enc=found.take("encoder.bias", m),
        W_dec=found.take("W_dec", m, d),
        b_dec=found.take("b_dec", d),
        W_skip=found.take("W_skip", d, d) if skips else None,
        transcodes=transcodes,
        centred=not transcodes,
        metadata={NAME: kept} if kept else {},
    )


def write(parts: SAEWeights, folder: Path) -> None:
    """Write the files of `SparseCoder.save_to_disk`."""
    parts = fitted(parts, NAME, ("topk",), centred=not parts.transcodes, skip=True)
    tensors = {
        "encoder.weight": parts.W_enc,
        "encoder.bias": parts.b_enc,
        "W_dec": parts.W_dec,
        "b_dec": parts.b_dec,
    }
    if parts.W_skip is not None:
        tensors["W_skip"] = parts.W_skip
    write_tensors(folder / "sae.safetensors", tensors)
    config = _DEFAULTS | parts.metadata_of(NAME)
    config |= {
        "num_latents": parts.m,
        "k": parts.k,
        "skip_connection": parts.W_skip is not None,
        "transcode": parts.transcodes,
        "d_in": parts.d,
    }
    write_json(folder / "cfg.json", config)
