"""flexsae's Triton decoder on a GPU beside saefast's, alone and with the loss that it publishes."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.gpu.contest import Contest
from bench.gpu.decodes import decodes_by
from bench.gpu.times import Contestant, Run, ceilings_item, ceilings_of, raced
from bench.gpu.worker import Item
from bench.shapes import gpu_shape

MODULE = "flex_sae.topk_kernels"
"""Module of the repository corl-team/flexsae, whose folder torch-ext/ must be on PYTHONPATH."""
LOSS = "decode+loss+backward"
"""Case: squared error of the reconstruction, and the gradients of values, weight and bias."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function of indices, weight, values, bias and target that returns the mean squared error."""


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the decodes of saefast and flexsae at the shape `argument`, or "decode"."""
    shape = gpu_shape(argument or "decode")
    ceilings = ceilings_of(facts)
    yield ceilings_item(ceilings)
    contest = Contest(shape)
    for case, contestants in RIVAL_CASES.items():
        yield from raced(shape, contest.unit, case, contestants(contest), ceilings)


def _decodes(contest: Contest) -> Iterator[Contestant]:
    """Yield decodes of both in both dtypes, without and with gradients."""

    def ours(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        return saefast.sparse_decode(values, indices, weight)

    def theirs(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        bag = importlib.import_module(MODULE).xFormersEmbeddingBag
        out: Tensor = bag.apply(indices, weight, values)
        return out

    yield from decodes_by(contest, "saefast", "", ours)
    yield from decodes_by(contest, "flexsae", "", theirs)


def _losses(contest: Contest) -> Iterator[Contestant]:
    """Yield the loss with its gradients, in float32 as published and in bfloat16."""

    def ours(
        indices: Tensor, weight: Tensor, values: Tensor, bias: Tensor, target: Tensor
    ) -> Tensor:
        error = saefast.sparse_decode(values, indices, weight) + bias.float() - target.float()
        return error.square().mean()

    def theirs(*arguments: Tensor) -> Tensor:
        loss: Tensor = importlib.import_module(MODULE).triton_topk_sae_loss(*arguments)
        return loss

    truth = _true_loss(contest)
    for rival, loss in (("saefast", ours), ("flexsae", theirs)):
        for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            build = partial(_run, loss, contest, dtype)
            tolerance = 1e-3 if dtype == torch.float32 else 2.0**-5
            near = partial(_near, truth, tolerance)
            yield Contestant(LOSS, rival, short, build, near)


def _true_loss(contest: Contest) -> float:
    """Return the loss in float64, some rows at a time."""
    values, indices = contest.code
    total = 0.0
    for x, places, factors in zip(
        contest.x.split(256), indices.split(256), values.split(256), strict=True
    ):
        rows = contest.weights.w_dec[places.flatten()].view(*places.shape, -1)
        decoded = (rows.double() * factors.double()[..., None]).sum(1) + contest.weights.b_dec
        total += float((decoded - x).square().sum())
    return total / contest.x.numel()


def _near(truth: float, tolerance: float, loss: Tensor) -> bool:
    return abs(float(loss) - truth) <= tolerance * truth


def _run(loss: Loss, contest: Contest, dtype: torch.dtype) -> Run:
    weight, values, bias = (
        tensor.to(dtype, copy=True).requires_grad_()
        for tensor in (contest.weights.w_dec, contest.code.values, contest.weights.b_dec)
    )

    def run() -> Tensor:
        found = loss(contest.code.indices, weight, values, bias, contest.x)
        torch.autograd.grad(found, (weight, values, bias))
        return found.detach()

    return run


RIVAL_CASES: dict[str, Callable[[Contest], Iterator[Contestant]]] = {
    "decode": _decodes,
    LOSS: _losses,
}
