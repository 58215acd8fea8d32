"""Findings of checks on a GPU, and data of checks."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.cases import Shape, Weights, draw

UNIT = 2.0**-24
"""Half the distance of adjacent float32 numbers: relative error of one rounding."""


class Finding(NamedTuple):
    """One statement about the kernels, and whether it holds."""

    check: str
    shape: Shape
    holds: bool
    figures: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return {**self._asdict(), "shape": self.shape._asdict()}


def drawn_on(shape: Shape, device: str) -> tuple[Tensor, Weights]:
    """Draw on the CPU, for the same numbers on every machine, and move to the device."""
    x, weights = draw(shape)
    return x.to(device), Weights(*(weight.to(device) for weight in weights))


def near(
    check: str,
    shape: Shape,
    names: Sequence[str],
    ours: Sequence[Tensor],
    again: Sequence[Tensor],
    truth: Sequence[Tensor],
    terms: Mapping[str, Tensor] = MappingProxyType({}),
) -> Finding:
    """Compare results with float64: sums of a few hundred terms have errors of a few roundings.

    A missing term would exceed the tolerance.

    Args:
        check: name of the check.
        shape: shape that is checked.
        names: names of the results.
        ours: results of the kernels.
        again: the same results, computed a second time.
        truth: results in float64.
        terms: by name, for results whose terms may cancel: sum of |terms| of each number, with
            which its error is compared in place of the length of the result.

    Returns:
        The finding, with the largest errors and whether a second run has the same bits.
    """
    figures = {
        name: relative_to_terms(a, e, terms[name]) if name in terms else relative(a, e)
        for name, a, e in zip(names, ours, truth, strict=True)
    }
    same = all(map(torch.equal, ours, again))
    holds = max(figures.values()) <= 1e-5 and same
    return Finding(check, shape, holds, {**figures, "same_bits": float(same)})


def relative(actual: Tensor, truth: Tensor) -> float:
    """Return the length of the error relative to the truth's.

    Infinite if anything is not finite.
    """
    return _finite(float((actual.double() - truth).norm() / truth.norm().clamp(min=1e-30)))


def relative_to_terms(actual: Tensor, truth: Tensor, terms: Tensor) -> float:
    """Return the largest error of a number by its sum of |terms|; infinite if any is not finite."""
    return _finite(float(((actual.double() - truth).abs() / terms.clamp(min=1e-30)).max()))


def _finite(error: float) -> float:
    return error if error == error else float("inf")
