"""The shapes that are timed, and the data at a shape."""

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """Width, latents, active latents, rows."""

    d: int
    m: int
    k: int
    n: int

    @property
    def gemm_flops(self) -> float:
        """Of one dense encode."""
        return 2.0 * self.n * self.d * self.m


SHAPES = (
    Shape(576, 16384, 32, 2048),
    Shape(768, 32768, 32, 2048),
    Shape(768, 131072, 64, 1024),
)
SWEEP = tuple(Shape(512, m, 32, 1024) for m in (4096, 8192, 16384, 32768, 65536, 131072))


class Weights(NamedTuple):
    """One SAE, given to every rival alike."""

    w_enc: Tensor
    """[m, d]"""
    b_enc: Tensor
    w_dec: Tensor
    """[m, d], rows of norm one"""
    b_dec: Tensor


def draw(shape: Shape) -> tuple[Tensor, Weights]:
    """Rows with a spread of scales along the width, as activations have, and unit directions."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1, shape.d)
    x = torch.randn(shape.n, shape.d, generator=generator) * spread
    w_dec = torch.randn(shape.m, shape.d, generator=generator)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    b_enc = 0.01 * torch.randn(shape.m, generator=generator)
    b_dec = 0.1 * torch.randn(shape.d, generator=generator)
    return x, Weights(w_dec.clone(), b_enc, w_dec, b_dec)
