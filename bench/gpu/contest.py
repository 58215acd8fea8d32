"""Data of one shape on a GPU, and reference results computed by torch alone."""

from collections.abc import Callable

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, Weights, draw
from bench.gpu.times import Run
from saefast import SparseCode

ROUNDED = 2.0**-6
"""Allowed relative error with operands and results in bfloat16: several roundings of 2^-9."""
_SLICE_FLOATS = 1 << 28


class Contest:
    """Rows, one SAE, and the code that torch computes for them."""

    def __init__(self, shape: Shape, device: str = "cuda") -> None:
        self.shape, self.device = shape, device
        self.x, self.weights = draw(shape, device)
        self.centred = self.x - self.weights.b_dec
        half, half_weight = self.centred.bfloat16(), self.weights.w_enc.bfloat16()
        self.unit: Run = lambda: torch.mm(half, half_weight.T)
        self.code = dense_code(self.centred, self.weights, shape.k)
        self.sample = slice(None, None, max(1, shape.n // 64))
        """rows whose reference results are computed in float64"""

    def near(self, tolerance: float, truth: Tensor) -> Callable[[Tensor], bool]:
        """Return a check that the sampled rows of a result are `truth`, relative to 1 + |truth|."""
        allowed = tolerance * (1 + truth.abs())
        return lambda out: bool(((out[self.sample] - truth).abs() <= allowed).all())


def dense_code(x: Tensor, weights: Weights, k: int) -> SparseCode:
    """Encode by dense float32 products, some rows at a time; values are not negative."""
    rows = max(1, _SLICE_FLOATS // len(weights.w_enc))
    found = [
        torch.addmm(weights.b_enc, part, weights.w_enc.T).topk(k, dim=1) for part in x.split(rows)
    ]
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return SparseCode(values.relu(), indices)


def model(
    shape: Shape, weights: Weights, dtype: torch.dtype = torch.float32, variant: str = "topk"
) -> saefast.SAE:
    """Return an SAE with these weights, on their device."""
    small = saefast.SAE(1, 1, k=1, variant=variant)
    with torch.device("meta"):  # avoids drawing large weights that are overwritten
        sae = saefast.SAE(shape.d, shape.m, k=shape.k, variant=variant, dtype=dtype, device="meta")
    sae.to_empty(device=weights.w_enc.device)
    given = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True))
    with torch.no_grad():
        for name, value in sae.state_dict().items():
            # All other parameters start with one value, regardless of their size.
            value.copy_(given[name] if name in given else small.state_dict()[name])
    return sae


def lowered(weights: Weights, centred: Tensor, k: int) -> Weights:
    """Return the weights with biases lowered so that k scores of a row are positive on average.

    No score is so close to zero that rounding would decide its sign.
    """
    some = centred[:64]
    scores = torch.addmm(weights.b_enc, some, weights.w_enc.T).flatten()
    level = scores.topk(k * len(some) + 1).values[-2:].mean()
    return weights._replace(b_enc=weights.b_enc - level)
