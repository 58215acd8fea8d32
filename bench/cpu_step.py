"""cpu_step: encode, bare and default training step, in units of the bfloat16 product of the encode.

The product is the one that no exact step on the CPU can avoid. The default step clips gradients and
has AuxK, as `TrainConfig` does; no latent is dead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, Weights, draw
from bench.measure import Contestant, Run, time_rounds
from bench.peers import fill
from saefast.train.packed_encoder import PackedEncoder

SHAPES = (
    Shape(576, 2048, 32, 2048),
    Shape(576, 4096, 32, 2048),
    Shape(576, 16384, 32, 2048),
    Shape(768, 32768, 32, 2048),
    Shape(2304, 16384, 64, 2048),
)
_SMALL = 10_000_000
"""Weights of one matrix up to which a round is short enough for all rounds."""
_CHECKED_ROWS = 64


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time the three in the same rounds as the product."""
    x, weights = draw(shape)
    if shape.m * shape.d > _SMALL:
        rounds = max(5, rounds // 3)
    default = saefast.TrainConfig(latents=shape.m, k=shape.k)
    encoder = PackedEncoder(_model(shape, weights), "exact")
    bare = saefast.FusedStep(_model(shape, weights), lr=1e-4)
    whole = saefast.FusedStep(
        _model(shape, weights), lr=1e-4, rules=default.rules, auxk=default.auxk
    )
    encode = partial(_encode, encoder, x, shape.k)
    contestants = [
        Contestant("saefast", "encode", encode, _same_latents(encode, x, weights)),
        *(
            Contestant("saefast", mode, partial(step, x), _same_loss(step, encode, x, weights))
            for mode, step in (("bare step", bare), ("default step", whole))
        ),
    ]
    unit = _product(x, weights.w_enc)
    return time_rounds("cpu_step", shape, unit, contestants, rounds, of="bfloat16 product")


def _product(x: Tensor, weight: Tensor) -> Run:
    """Return the unit: torch.mm of rounded operands into existing memory."""
    left, right = x.bfloat16(), weight.bfloat16().T
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
    return lambda: torch.mm(left, right, out=out)


def _model(shape: Shape, weights: Weights) -> saefast.SAE:
    model = saefast.SAE(shape.d, shape.m, k=shape.k, seed=0)
    for name, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
        fill(getattr(model, name), value)
    return model


@torch.no_grad()
def _encode(encoder: PackedEncoder, x: Tensor, k: int) -> saefast.SparseCode:
    return encoder.largest(encoder.sae.inputs(x), k)


def _same_latents(encode: Callable[[], saefast.SparseCode], x: Tensor, weights: Weights) -> bool:
    """Compare the code of some rows with the code of float64 scores."""
    some = x[:_CHECKED_ROWS].double() - weights.b_dec
    scores = some @ weights.w_enc.T.double() + weights.b_enc
    found = encode()
    expected = scores.topk(found.indices.shape[1]).values
    return torch.allclose(found.values[:_CHECKED_ROWS].double(), expected, atol=1e-4, rtol=1e-5)


def _same_loss(
    step: saefast.FusedStep,
    encode: Callable[[], saefast.SparseCode],
    x: Tensor,
    weights: Weights,
) -> bool:
    """Compare the loss of the first step with the loss of the code."""
    values, indices = encode()
    decoded = saefast.sparse_decode(values.relu(), indices, weights.w_dec, weights.b_dec)
    expected = (decoded - x).double().square().sum(1).mean()
    return abs(float(step(x).loss / expected) - 1) < 1e-5
