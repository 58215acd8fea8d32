"""paths: a ReLU step on the fused path and on dense products, by the number of active latents.

`step._TOO_DENSE` is set from the point where their times are equal.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, draw
from bench.measure import Contestant, gemm, time_rounds
from saefast.train.objectives import ReLU

SHAPES = (Shape(576, 16384, 32, 2048),)
_ACTIVE = (32, 512, 1500)


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time both paths at each number of active latents, interleaved with one GEMM."""
    x, weights = draw(shape)
    unit = gemm(x, weights.w_enc)
    rows: list[dict[str, Any]] = []
    for active in _ACTIVE:
        steps = {path: _step(shape, x, active) for path in ("fused", "dense")}
        losses = {path: _take(step, path, x) for path, step in steps.items()}
        agrees = abs(losses["fused"] / losses["dense"] - 1) < 1e-4
        contestants = [
            Contestant("saefast", f"{path}, {active} active", partial(_take, step, path, x), agrees)
            for path, step in steps.items()
        ]
        timed = time_rounds("paths", shape, unit, contestants, max(3, rounds // 3))
        rows.extend(timed if not rows else timed[1:])
    return rows


def _step(shape: Shape, x: Tensor, active: int) -> saefast.FusedStep:
    """Return a step whose codes keep about `active` positive values in a row."""
    sae = saefast.SAE(shape.d, shape.m, variant="relu", k=shape.k, seed=0)
    with torch.no_grad():
        scores = x[:64] @ sae.W_enc.T
        sae.b_enc.sub_(scores.flatten().topk(64 * active).values[-1])
    return saefast.FusedStep(sae, lr=0.0, objective=ReLU(1.0))


def _take(step: saefast.FusedStep, path: str, x: Tensor) -> float:
    step._dense.fill_(path == "dense")
    return float(step(x).loss)
