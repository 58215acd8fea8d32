"""Define `Dictionary`, the features of one SAE, and convert tensors and SAEs to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from saefast import checks
from saefast.sae import SAE
from saefast.types import brief


@dataclass(frozen=True)
class Dictionary:
    """The features of one SAE, one per row: the input of matching, scoring and pooling."""

    W_dec: Tensor
    """[m, d] decoder rows"""
    W_enc: Tensor | None = None
    """[m, d] encoder rows"""
    b_enc: Tensor | None = None
    """[m] encoder bias"""
    b_dec: Tensor | None = None
    """[d] decoder bias"""
    firing_rate: Tensor | None = None
    """[m] share of tokens on which each feature fires"""
    centred: bool = True
    """whether the encoder's inputs are rows minus `b_dec`, as in `SAE`"""

    __repr__ = brief

    @property
    def m(self) -> int:
        """Number of features, including dead ones."""
        return len(self.W_dec)

    @property
    def alive(self) -> Tensor:
        """[m] bool, features with a nonzero row on each known side and no known rate of zero."""
        # Not any(), which would allocate an [m, d] bool tensor.
        alive: Tensor = vector_norm(self.W_dec, inf, dim=1) > 0
        if self.W_enc is not None:
            alive &= vector_norm(self.W_enc, inf, dim=1) > 0
        if self.firing_rate is not None:
            alive &= self.firing_rate > 0
        return alive


SIDES = ("decoder", "encoder", "both")

Features = Tensor | SAE | Dictionary
"""Accepted representations of an SAE's features; a tensor [m, d] holds decoder rows."""


def as_dictionary(source: Features, name: str = "dictionary") -> Dictionary:
    """Convert an SAE or a tensor [m, d] of decoder rows to a `Dictionary`.

    Args:
        source: an SAE, a tensor [m, d] or a `Dictionary`, which is returned as it is.
        name: name of the argument in error messages.

    Returns:
        The dictionary.
    """
    decoder = name if isinstance(source, Tensor) else f"{name}.W_dec"
    if isinstance(source, SAE):
        source = Dictionary(
            source.W_dec.detach(),
            source.W_enc.detach(),
            source.b_enc.detach(),
            source.b_dec.detach(),
            source.firing_rate,
            source.centred,
        )
    elif isinstance(source, Tensor):
        source = Dictionary(source.detach())
    elif not isinstance(source, Dictionary):
        raise TypeError(
            f"{name} must be a tensor [m, d], a saefast.SAE or a saefast.Dictionary, got "
            f"{type(source).__name__}{_way_from(source)}"
        )
    _check(source, name, decoder)
    return source


def as_dictionaries(sources: Sequence[Features], least: int = 1) -> list[Dictionary]:
    """Convert several sources of one width to dictionaries; require at least `least` of them."""
    if isinstance(sources, SAE | Dictionary | str) or not isinstance(sources, Iterable):
        raise TypeError(
            f"dictionaries must be a sequence of tensors [m, d], saefast.SAE or "
            f"saefast.Dictionary objects, got {type(sources).__name__}{_way_from(sources)}"
        )
    dictionaries = [as_dictionary(source, f"dictionaries[{i}]") for i, source in enumerate(sources)]
    if len(dictionaries) < least:
        raise ValueError(
            f"dictionaries must hold at least {least} dictionaries of different seeds, got "
            f"{len(dictionaries)}"
        )
    for i, dictionary in enumerate(dictionaries):
        width = dictionaries[0].W_dec.shape[1]
        checks.size(f"dictionaries[{i}]", dictionary.W_dec, 1, width, "the width of the first")
    return dictionaries


def side_of(dictionary: Dictionary, side: str, name: str = "dictionary") -> Tensor:
    """Return the decoder or encoder rows [m, d] of a dictionary, including dead ones."""
    checks.one_of("side", side, ("decoder", "encoder"))
    rows = dictionary.W_dec if side == "decoder" else dictionary.W_enc
    if rows is None:
        raise ValueError(f"{name} has no W_enc, which side={side!r} needs; use side='decoder'")
    return rows


def sae_from(
    dictionary: Features,
    *,
    k: int,
    variant: str = "topk",
    threshold: Tensor | float | None = None,
    by_norm: bool = False,
) -> SAE:
    """Build an SAE with the features of a dictionary, for inference or fine-tuning.

    Args:
        dictionary: the features: a tensor [m, d], an SAE or a `Dictionary`, such as a pooled one.
            A missing encoder is replaced by the decoder, missing biases by zeros.
        k: number of active latents per row.
        variant: any variant but "gated", whose magnitude parameters a dictionary does not hold.
        threshold: activation threshold, a number, or [m] for "jumprelu"; only for variants that
            have one. None keeps the value of an untrained SAE.
        by_norm: whether latents are ranked by activation times the norm of their decoder row, as in
            `SAE`.

    Returns:
        An SAE with at least float32 parameters, on the CPU.

    Raises:
        ValueError: `variant` is "gated", `threshold` is given for a variant without one, or
            `dictionary` is a transcoder or an SAE that normalises rows or has a skip connection.
    """
    check_plain(dictionary, "dictionary")
    source = as_dictionary(dictionary)
    if variant == "gated":
        raise ValueError(
            "variant must not be 'gated': a dictionary does not hold the magnitudes of a gated SAE"
        )
    d, dtype = source.W_dec.shape[1], _exact(source)
    sae = SAE(
        d,
        source.m,
        variant=variant,
        k=k,
        seed=0,
        centred=source.centred,
        by_norm=by_norm,
        dtype=dtype,
    )
    parts: dict[str, Tensor | float | None] = {
        "W_dec": source.W_dec,
        "W_enc": source.W_dec if source.W_enc is None else source.W_enc,
        "b_enc": source.b_enc,
        "b_dec": source.b_dec,
    }
    if threshold is not None:
        name = {"jumprelu": "jump_threshold"}.get(variant, "batch_threshold")
        if not hasattr(sae, name):
            raise ValueError(
                f"threshold must be None for variant {variant!r}, which has no threshold"
            )
        parts[name] = threshold
    with torch.no_grad():
        for name, values in parts.items():
            if values is not None:
                mine: Tensor = getattr(sae, name)
                if not isinstance(values, Tensor):
                    values = torch.tensor(values, dtype=torch.float64, device="cpu")
                values = values.detach()
                if values.ndim:
                    checks.shape(name, values, tuple(mine.shape))
                mine.copy_(values)
    return sae


def check_plain(source: Features, name: str) -> None:
    """Raise a ValueError if a source is an SAE of which a `Dictionary` lacks a part."""
    if not isinstance(source, SAE):
        return
    if source.transcodes:
        raise ValueError(
            f"{name} must not be a transcoder, whose encoder and decoder are in different spaces"
        )
    if source.skip or source.normalise != "none":
        part = "has a skip connection" if source.skip else "normalises rows"
        raise ValueError(
            f"{name} must not be an SAE that {part}, which a Dictionary does not hold; give its "
            f"W_dec to use its directions alone"
        )


def _way_from(source: Any) -> str:
    """Return a hint for the error message: how to convert `source` to a supported type."""
    if isinstance(source, str | Path):
        return "; saefast.load_dictionaries reads files and folders"
    if isinstance(source, np.ndarray):
        return "; torch.from_numpy makes a tensor of it"
    if hasattr(source, "W_dec"):
        return "; give its W_dec, if a row is a feature, or save it and use saefast.load_sae"
    return ""


def _exact(source: Dictionary) -> torch.dtype:
    """Return the dtype of the SAE's parameters: at least float32, so that it can be trained."""
    return torch.promote_types(source.W_dec.dtype, torch.float32)


def _check(dictionary: Dictionary, name: str, decoder: str) -> None:
    checks.floating(decoder, dictionary.W_dec, "[m, d]")
    checks.between(f"{decoder}.shape[1]", dictionary.W_dec.shape[1], 1, 2**31 - 1, "the width")
    checks.finite(decoder, dictionary.W_dec)
    if dictionary.W_enc is not None:
        checks.floating(f"{name}.W_enc", dictionary.W_enc, "[m, d]")
        checks.finite(f"{name}.W_enc", dictionary.W_enc)
        checks.size(f"{name}.W_enc", dictionary.W_enc, 0, dictionary.m, "the rows of W_dec")
    for field, length in (("b_enc", dictionary.m), ("firing_rate", dictionary.m)):
        values = getattr(dictionary, field)
        if values is not None:
            checks.floating(f"{name}.{field}", values, "[m]")
            checks.size(f"{name}.{field}", values, 0, length, "the rows of W_dec")
