"""Shapes that are timed, and data of each shape."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.shapes import Shape as Shape

SHAPES = (
    Shape(576, 16384, 32, 2048),
    Shape(768, 32768, 32, 2048),
    Shape(768, 131072, 64, 1024),
)
SWEEP = tuple(Shape(512, m, 32, 1024) for m in (4096, 8192, 16384, 32768, 65536, 131072))


class Weights(NamedTuple):
    """Weights of one SAE, the same for every rival."""

    w_enc: Tensor
    """[m, d]"""
    b_enc: Tensor
    w_dec: Tensor
    """[m, d] with rows of norm one"""
    b_dec: Tensor


def draw(shape: Shape, device: str = "cpu") -> tuple[Tensor, Weights]:
    """Draw rows with scales that spread over the width, as in activations, and unit directions.

    The numbers depend on the kind of device that draws them.

    Returns:
        Rows [n, d] and weights.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    x = normal(shape.n, shape.d) * torch.logspace(0, -1, shape.d, device=device)
    w_dec = normal(shape.m, shape.d)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    b_enc = 0.01 * normal(shape.m)
    b_dec = 0.1 * normal(shape.d)
    return x, Weights(w_dec.clone(), b_enc, w_dec, b_dec)
