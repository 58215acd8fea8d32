"""Who belongs to which group of features: by score of stability, or by masks."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary

Groups = dict[str, list[Tensor]]
"""By name, for each dictionary a bool tensor [m]"""

_ROUNDING = 1e-6  # a score of 0.8 may have come as 0.79999995 in float32


class Scored(Protocol):
    """Features with a score of their stability: `Stability` is one."""

    @property
    def score(self) -> Sequence[Tensor]:
        """[m] for each dictionary, in [0, 1]"""

    @property
    def alive(self) -> Sequence[Tensor]:
        """[m] bool for each dictionary"""


def feature_groups(
    dictionaries: Sequence[Dictionary],
    stability: Scored | None,
    groups: Mapping[str, Sequence[Tensor]] | None,
    stable: float,
    unstable: float,
) -> Groups:
    """ "stable" and "unstable" of a score, where there is one, then the groups given by masks."""
    if stability is None and not groups:
        raise ValueError(
            "stability or groups must be given: what score_stability returned, or "
            "groups={name: [a bool tensor [m] for each dictionary]}"
        )
    found: Groups = {}
    if stability is not None:
        for name, values in (("score", stability.score), ("alive", stability.alive)):
            _check_count(f"stability.{name}", values, dictionaries)
            for s, (each, dictionary) in enumerate(zip(values, dictionaries, strict=True)):
                checks.size(f"stability.{name}[{s}]", each, 0, dictionary.m, "its features")
        both = list(zip(stability.score, stability.alive, strict=True))
        found["stable"] = [(score >= stable - _ROUNDING) & alive for score, alive in both]
        found["unstable"] = [(score <= unstable + _ROUNDING) & alive for score, alive in both]
    for name, masks in (groups or {}).items():
        _check_count(f"groups[{name!r}]", masks, dictionaries)
        for s, (mask, dictionary) in enumerate(zip(masks, dictionaries, strict=True)):
            _check_mask(f"groups[{name!r}][{s}]", mask, dictionary.m)
        found[name] = list(masks)
    return found


def _check_count(name: str, values: Sequence[Tensor], dictionaries: Sequence[Dictionary]) -> None:
    if len(values) != len(dictionaries):
        raise ValueError(
            f"{name} must hold a tensor for each of the {len(dictionaries)} dictionaries, got "
            f"{len(values)}"
        )


def _check_mask(name: str, mask: object, m: int) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor [{m}], got {kind}")
    checks.shape(name, mask, (m,))
