"""train_step: forward, loss, backward, Adam and, if a rival has it, unit norm of the decoder."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench import cases, peers
from bench.cases import Shape, Weights, draw
from bench.measure import Contestant, gemm, time_rounds
from bench.peers import Training

LR = 1e-4

SHAPES = cases.SHAPES
_TOGETHER = 30_000_000
"""Weights of one matrix up to which all rivals fit into 24 GB at once."""


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time every rival; large ones in groups, each beside the exact fused step and the GEMM."""
    x, weights = draw(shape)
    with torch.no_grad():
        truth = _model(shape, weights)(x)
    unit = gemm(x, weights.w_enc)
    exact = Contestant(
        "saefast", "exact", _fused(shape, weights, "exact", x), _same_first_step(shape, weights, x)
    )
    rows: list[dict[str, Any]] = []
    group: list[Contestant] = []

    def time_group() -> None:
        timed = time_rounds("train_step", shape, unit, [exact, *group], rounds)
        rows.extend(timed if not rows else timed[2:])
        group.clear()

    for rival, mode, training in _trainings(shape, weights):
        with torch.no_grad():
            error = (training.reconstruct(x) - truth).abs().max()
        training.step(x)  # compiles the backward pass before peers are imported
        group.append(Contestant(rival, mode, partial(training.step, x), bool(error <= 1e-4)))
        del training
        if shape.m * shape.d > _TOGETHER:
            time_group()
    if group:
        time_group()
    return rows


def _trainings(shape: Shape, weights: Weights) -> Iterator[tuple[str, str, Training]]:
    rounded = saefast.FusedStep(_model(shape, weights), lr=LR, precision="bf16")
    yield "saefast", "bf16", Training(rounded.sae.forward, rounded)
    del rounded
    yield "saefast", "autograd", _autograd_training(shape, weights)
    yield "torch", "dense", _dense_training(shape, weights, compiled=False)
    yield "torch.compile", "dense", _dense_training(shape, weights, compiled=True)
    for name, training in peers.trainings(shape, weights, LR):
        yield name, "default", training


def _model(shape: Shape, weights: Weights) -> saefast.SAE:
    model = saefast.SAE(shape.d, shape.m, k=shape.k, seed=0)
    for name, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
        peers.fill(getattr(model, name), value)
    return model


def _fused(shape: Shape, weights: Weights, precision: str, x: Tensor) -> Callable[[], object]:
    step = saefast.FusedStep(_model(shape, weights), lr=LR, precision=precision)
    return lambda: step(x)


def _optimised(
    model: saefast.SAE, reconstruct: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], None]:
    """Return a step with Adam, removal of the parallel gradient and unit norm, in dense code."""
    optimiser = torch.optim.Adam(model.parameters(), LR)

    def step(x: Tensor) -> None:
        optimiser.zero_grad()
        (reconstruct(x) - x).square().sum(1).mean().backward()
        with torch.no_grad():
            grad = model.W_dec.grad
            assert grad is not None
            grad -= (grad * model.W_dec).sum(1, keepdim=True) * model.W_dec
            optimiser.step()
            model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))

    return step


def _dense_training(shape: Shape, weights: Weights, *, compiled: bool) -> Training:
    model = _model(shape, weights)

    def reconstruct(x: Tensor) -> Tensor:
        scores = torch.addmm(model.b_enc, x - model.b_dec, model.W_enc.T)
        values, indices = torch.relu(scores).topk(shape.k, sorted=False)
        return torch.zeros_like(scores).scatter(1, indices, values) @ model.W_dec + model.b_dec

    forward = torch.compile(reconstruct, dynamic=False) if compiled else reconstruct
    return Training(forward, _optimised(model, forward))


def _autograd_training(shape: Shape, weights: Weights) -> Training:
    """Return the training of a user's own loop that uses saefast's two ops."""
    model = _model(shape, weights)
    return Training(model.forward, _optimised(model, model.forward))


def _same_first_step(shape: Shape, weights: Weights, x: Tensor) -> bool:
    """Check that the fused step gives the weights of autograd, Adam and the projection."""
    fused, plain = _model(shape, weights), _autograd_training(shape, weights)
    saefast.FusedStep(fused, lr=LR)(x)
    plain.step(x)
    expected = plain.reconstruct.__self__  # type: ignore[attr-defined]
    # Adam's first step is the sign of the gradient times lr, regardless of its size: where a
    # gradient is nearly zero, two correct sums may differ in sign. Count those instead of bounding
    # them.
    apart = [
        (mine - torchs).abs() > 0.1 * LR
        for mine, torchs in zip(fused.parameters(), expected.parameters(), strict=True)
    ]
    return max(float(a.float().mean()) for a in apart) < 1e-3
