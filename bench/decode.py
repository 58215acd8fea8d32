"""decode: reconstruction from k active latents, forward and with gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import saefast
from bench import cases, peers
from bench.cases import Shape, Weights, draw
from bench.measure import Contestant, Run, gemm, time_rounds

SHAPES = cases.SHAPES


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time every rival, forward only and with gradients."""
    x, weights = draw(shape)
    code = saefast.topk_encode(x - weights.b_dec, weights.w_enc, weights.b_enc, k=shape.k)
    values, indices = code.values.relu(), code.indices
    truth = _true_rows(values, indices, weights)
    leaves = [values.clone().requires_grad_(), weights.w_dec.clone().requires_grad_()]
    upstream = torch.ones(shape.n, shape.d)
    contestants: list[Contestant] = []

    def enter(rival: str, mode: str, decode: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        """Add a contestant for the forward pass, and one with gradients of values and weight."""
        with torch.no_grad():
            agrees = bool(((decode(*inputs) - truth).abs() <= 1e-4).all())
        contestants.append(Contestant(rival, mode, _without_grad(decode, inputs), agrees))
        if inputs is leaves:
            both = _with_grad(decode, inputs, upstream)
            both()  # compiles the backward pass before peers are imported
            contestants.append(Contestant(rival, f"{mode}+backward", both, agrees))

    def dense(v: Tensor, w: Tensor) -> Tensor:
        return torch.zeros(shape.n, shape.m).scatter(1, indices, v) @ w + weights.b_dec

    def embedding_bag(v: Tensor, w: Tensor) -> Tensor:
        out = torch.nn.functional.embedding_bag(indices, w, per_sample_weights=v, mode="sum")
        return out + weights.b_dec

    enter(
        "saefast", "exact", lambda v, w: saefast.sparse_decode(v, indices, w, weights.b_dec), leaves
    )
    enter("torch", "dense", dense, leaves)
    enter("torch", "embedding_bag", embedding_bag, leaves)
    enter("torch.compile", "dense", torch.compile(dense, dynamic=False), leaves)
    for name, peer in peers.coders(shape, weights).items():
        with torch.no_grad():
            own_code = peer.encode(x)
        enter(name, "default", peer.decode, [own_code])
    return time_rounds("decode", shape, gemm(x, weights.w_enc), contestants, rounds)


def _without_grad(decode: Callable[..., Tensor], inputs: list[Tensor]) -> Run:
    def run() -> None:
        with torch.no_grad():
            decode(*inputs)

    return run


def _with_grad(decode: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> Run:
    def run() -> None:
        torch.autograd.grad(decode(*inputs), inputs, upstream)

    return run


def _true_rows(values: Tensor, indices: Tensor, weights: Weights) -> Tensor:
    out = [
        torch.einsum("nk,nkd->nd", v.double(), weights.w_dec[i].double())
        for v, i in zip(values.split(128), indices.split(128), strict=True)
    ]
    return torch.cat(out) + weights.b_dec
