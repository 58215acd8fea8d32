"""encode: k active latents of every row."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench import cases, peers
from bench.cases import Shape, Weights, draw
from bench.measure import Contestant, gemm, time_rounds
from saefast.ops.cpu import native
from saefast.ops.encode_cpu import Screen, encode_on_cpu

SHAPES = (*cases.SHAPES, *cases.SWEEP)


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time every rival at the main shapes, and dense torch and saefast along the sweep."""
    with_peers = shape in cases.SHAPES
    x, weights = draw(shape)
    centred = x - weights.b_dec
    truth = _true_values(centred, weights, shape.k)

    def agrees(values: Tensor, tolerance: float = 1e-5) -> bool:
        return bool(((values.double() - truth).abs() <= tolerance * (1 + truth.abs())).all())

    def dense(inputs: Tensor) -> Any:
        return torch.topk(torch.relu(torch.addmm(weights.b_enc, inputs, weights.w_enc.T)), shape.k)

    def ours(precision: str) -> Callable[[], saefast.SparseCode]:
        return lambda: saefast.topk_encode(
            centred, weights.w_enc, weights.b_enc, k=shape.k, precision=precision
        )

    contestants = [
        Contestant("saefast", "exact", ours("exact"), agrees(ours("exact")().values)),
        # operands are rounded to bfloat16, so the error of a score is up to 2^-8 of its terms
        Contestant("saefast", "bf16", ours("bf16"), agrees(ours("bf16")().values, 2.0**-7)),
        Contestant("torch", "dense", lambda: dense(centred), agrees(dense(centred).values)),
    ]
    if with_peers:
        contestants += _other_levels(centred, weights, shape, agrees)
        compiled = torch.compile(dense, dynamic=False)
        contestants.append(
            Contestant(
                "torch.compile",
                "dense",
                lambda: compiled(centred),
                agrees(compiled(centred).values),
            )
        )
        for name, peer in peers.coders(shape, weights).items():
            values = peer.dense_code(peer.encode(x)).topk(shape.k).values
            contestants.append(Contestant(name, "default", partial(peer.encode, x), agrees(values)))
    case = "encode" if with_peers else "encode_sweep"
    return time_rounds(case, shape, gemm(centred, weights.w_enc), contestants, rounds)


def _other_levels(
    centred: Tensor, weights: Weights, shape: Shape, agrees: Callable[[Tensor], bool]
) -> list[Contestant]:
    """Return saefast's kernels as processors with fewer instruction sets run them."""
    best = native.level()

    def encode(level: str) -> saefast.SparseCode:
        native.use_level(level)
        try:
            return encode_on_cpu(
                centred,
                weights.w_enc,
                weights.b_enc,
                None,
                shape.k,
                "exact",
                Screen("native", "float32"),
            )
        finally:
            native.use_level(best)

    return [
        Contestant(
            "saefast",
            f"exact {level}",
            partial(encode, level),
            agrees(encode(level).values),
        )
        for level in ("avx512", "avx2")
        if level in native.usable_levels() and level != best
    ]


def _true_values(centred: Tensor, weights: Weights, k: int) -> Tensor:
    """Return the k largest scores after ReLU, computed in float64 in blocks of rows."""
    chunks = [
        (rows @ weights.w_enc.double().T + weights.b_enc).topk(k).values
        for rows in centred.double().split(128)
    ]
    return torch.cat(chunks).relu()
