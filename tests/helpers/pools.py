"""Pools and scores of dictionaries, without progress bars."""

from typing import Any

from torch import Tensor

from saefast import Dictionary, pool_features, score_stability
from saefast.stability.result import Stability


def directions(dictionary: Any) -> Tensor:
    rows = dictionary.W_dec.detach().double()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)


def scores(dictionaries: Any, threshold: float = 0.7, absolute: bool = False) -> Stability:
    return score_stability(dictionaries, threshold=threshold, absolute=absolute, progress=False)


def pooled(dictionaries: Any, stability: Any = None, **options: Any) -> Dictionary:
    stability = stability or scores(dictionaries, options.get("threshold", 0.7))
    return pool_features(dictionaries, stability, progress=False, **options)
