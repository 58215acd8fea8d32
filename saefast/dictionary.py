"""Whatever holds the features of an SAE, as a Dictionary."""

from collections.abc import Sequence

from torch import Tensor

from saefast.ops import checks
from saefast.sae import SAE
from saefast.types import Dictionary

SIDES = ("decoder", "encoder", "both")

Features = Tensor | SAE | Dictionary
"""What stands for the features of an SAE; a tensor [m, d] for the rows of its decoder"""


def as_dictionary(source: Features, name: str = "dictionary") -> Dictionary:
    """The features of an SAE, or a tensor [m, d] of decoder rows; `name` is for errors."""
    if isinstance(source, SAE):
        rows = (source.W_dec, source.W_enc, source.b_enc, source.b_dec)
        source = Dictionary(*(values.detach() for values in rows))
    elif isinstance(source, Tensor):
        source = Dictionary(source.detach())
    elif not isinstance(source, Dictionary):
        raise TypeError(
            f"{name} must be a tensor [m, d], a saefast.SAE or a saefast.Dictionary, got "
            f"{type(source).__name__}"
        )
    _check(source, name)
    return source


def as_dictionaries(sources: Sequence[Features], least: int = 1) -> list[Dictionary]:
    """Several of one width, at least `least` of them."""
    dictionaries = [as_dictionary(source, f"dictionaries[{i}]") for i, source in enumerate(sources)]
    if len(dictionaries) < least:
        raise ValueError(
            f"dictionaries must be at least {least}, of different seeds, got {len(dictionaries)}"
        )
    for i, dictionary in enumerate(dictionaries):
        width = dictionaries[0].W_dec.shape[1]
        checks.size(f"dictionaries[{i}]", dictionary.W_dec, 1, width, "the others' width")
    return dictionaries


def side_of(dictionary: Dictionary, side: str, name: str = "dictionary") -> Tensor:
    """Its rows [m, d] of the decoder or the encoder."""
    checks.one_of("side", side, ("decoder", "encoder"))
    rows = dictionary.W_dec if side == "decoder" else dictionary.W_enc
    if rows is None:
        raise ValueError(f"{name} has no W_enc, which side={side!r} needs; use side='decoder'")
    return rows


def _check(dictionary: Dictionary, name: str) -> None:
    checks.floating(f"{name}.W_dec", dictionary.W_dec, "[m, d]")
    checks.finite(f"{name}.W_dec", dictionary.W_dec)
    if dictionary.W_enc is not None:
        checks.floating(f"{name}.W_enc", dictionary.W_enc, "[m, d]")
        checks.finite(f"{name}.W_enc", dictionary.W_enc)
        checks.size(f"{name}.W_enc", dictionary.W_enc, 0, dictionary.m, "the rows of W_dec")
    for field, length in (("b_enc", dictionary.m), ("firing_rate", dictionary.m)):
        values = getattr(dictionary, field)
        if values is not None:
            checks.floating(f"{name}.{field}", values, "[m]")
            checks.size(f"{name}.{field}", values, 0, length, "the rows of W_dec")
