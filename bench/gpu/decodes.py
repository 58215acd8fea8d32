"""Contests of decoding: forward only, and with the gradients of values and weight."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import saefast
from bench.gpu.contest import Contest
from bench.gpu.times import Contestant, Run
from saefast import reference

Decode = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of indices [n, k], values [n, k] and weight [m, d] that returns rows [n, d]."""


def decodes(contest: Contest) -> Iterator[Contestant]:
    """Yield saefast's decode, a dense product, and torch's embedding bag."""
    shape = contest.shape

    def ours(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        return saefast.sparse_decode(values, indices, weight)

    def dense(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        return values.new_zeros(shape.n, shape.m).scatter(1, indices, values) @ weight

    def embedding_bag(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            indices, weight, per_sample_weights=values, mode="sum"
        )

    yield from decodes_by(contest, "saefast", "", ours)
    yield from decodes_by(contest, "torch", " dense", dense)
    for one in decodes_by(contest, "torch", " embedding_bag", embedding_bag):
        # On a GPU torch has no gradients of weighted bags in bfloat16.
        if (one.case, one.mode) != ("decode+backward", "bf16 embedding_bag"):
            yield one
    yield from decodes_by(contest, "torch.compile", " dense", dense)


def decodes_by(contest: Contest, rival: str, mode: str, decode: Decode) -> Iterator[Contestant]:
    """Yield one implementation in both dtypes, without and with gradients."""
    values, places = (t[contest.sample] for t in contest.code)
    truth = reference.sparse_decode(values, places, contest.weights.w_dec)
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        near = contest.near(1e-3 if dtype == torch.float32 else 2.0**-4, truth)
        for case in ("decode", "decode+backward"):
            build = partial(
                _run,
                decode,
                contest,
                dtype,
                backward=case != "decode",
                compiled=rival == "torch.compile",
            )
            yield Contestant(case, rival, short + mode, build, near)


def _run(
    decode: Decode, contest: Contest, dtype: torch.dtype, *, backward: bool, compiled: bool
) -> Run:
    if compiled:
        decode = torch.compile(decode, dynamic=False)
    indices = contest.code.indices
    leaves = [
        tensor.to(dtype, copy=True).requires_grad_(backward)
        for tensor in (contest.code.values, contest.weights.w_dec)
    ]
    upstream = torch.ones(contest.shape.n, contest.shape.d, dtype=dtype, device=contest.device)

    def run() -> Tensor:
        out = decode(indices, *leaves)
        if backward:
            torch.autograd.grad(out, leaves, upstream)
        return out.detach()

    return run
