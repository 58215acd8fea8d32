"""All checks of the kernels at small and odd shapes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from bench.cases import Shape, Weights
from bench.gpu.encode_checks import (
    exact_encodes,
    integer_encodes,
    integer_thresholds,
    rounded_encodes,
    same_scores,
    thresholds,
)
from bench.gpu.finding import Finding, drawn_on
from bench.gpu.parts import CHECKED
from bench.gpu.training_checks import defaults, gradients, residuals, trainings
from bench.gpu.worker import Item
from bench.shapes import gpu_shape

SHAPES = tuple(map(gpu_shape, CHECKED))
CHECKS = (
    exact_encodes,
    rounded_encodes,
    integer_encodes,
    thresholds,
    integer_thresholds,
    same_scores,
    gradients,
    residuals,
    trainings,
    defaults,
)


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield every check at the shape `argument`."""
    shape = gpu_shape(argument)
    data = drawn_on(shape, "cuda")
    for check in CHECKS:
        name = f"{check.__name__} at {argument}"
        yield Item(name, partial(_rows, check(shape, *data)), {"holds": False})


def _rows(found: Iterator[Finding]) -> Iterator[dict[str, Any]]:
    return (finding.row() for finding in found)


def findings(shape: Shape, device: str) -> Iterator[Finding]:
    """Yield the findings of every check at one shape."""
    data: tuple[Tensor, Weights] = drawn_on(shape, device)
    for check in CHECKS:
        yield from check(shape, *data)
