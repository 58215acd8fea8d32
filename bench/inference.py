"""inference: `SAE.encode` of one to a few thousand rows, with a weight packed once."""

from typing import Any

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, draw
from bench.measure import Contestant, gemm, time_rounds

ROWS = (1, 8, 32, 256, 2048)
SHAPES = tuple(Shape(576, 16384, 32, rows) for rows in ROWS)


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time an SAE, the op that packs its weight in every call, and a dense product with topk."""
    x, weights = draw(shape)
    sae = saefast.SAE(shape.d, shape.m, k=shape.k).requires_grad_(False)
    for name, values in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
        sae.get_parameter(name).copy_(values)

    def packing() -> Tensor:
        code = saefast.topk_encode(sae.inputs(x), sae.W_enc, sae.b_enc, k=shape.k)
        return code.values.relu()

    def dense() -> Tensor:
        scores = torch.nn.functional.linear(sae.inputs(x), sae.W_enc, sae.b_enc)
        return scores.relu().topk(shape.k).values

    def kept() -> Tensor:
        return sae.encode(x).values

    truth = dense()
    runs = {("saefast", "kept"): kept, ("saefast", "packing"): packing, ("torch", "dense"): dense}
    contestants = [
        Contestant(*name, run, torch.allclose(run(), truth, rtol=1e-5, atol=1e-5))
        for name, run in runs.items()
    ]
    unit = gemm(sae.inputs(x), weights.w_enc)
    return time_rounds("inference", shape, unit, contestants, rounds * max(1, 256 // shape.n))
