"""What several SAEs make of the same rows."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from saefast.sae import SAE
from saefast.types import SparseCode


def as_saes(saes: SAE | Sequence[SAE], d: int) -> list[SAE]:
    """One or several SAEs for rows of width d."""
    each: list[Any] = list(saes) if isinstance(saes, Iterable) else [saes]
    if not each:
        raise ValueError("saes must be at least one, got an empty sequence")
    for number, sae in enumerate(each):
        if not isinstance(sae, SAE):
            raise TypeError(f"saes[{number}] must be a saefast.SAE, got {type(sae).__name__}")
        if sae.d != d:
            raise ValueError(
                f"saes[{number}] must take the activations, whose width is {d}, got d={sae.d}"
            )
    return each


def code_of(sae: SAE, x: Tensor) -> SparseCode:
    """What the SAE makes of rows of any device and dtype, where and as its weights are."""
    return sae.encode(x.to(sae.W_enc.device, sae.W_enc.dtype))
