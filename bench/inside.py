"""inside: each peer's own training step, alone and with saefast inside."""

import gc
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from bench import peers
from bench.cases import Shape, Weights, draw
from bench.measure import Contestant, gemm, time_rounds
from bench.peers import Training

SHAPES = (Shape(576, 16384, 32, 2048),)
LR = 1e-4
_STEPS = 3
"""Number of steps whose losses are compared before anything is timed."""
_TOLERANCE = 1e-5


_ACTIVE = 0.01
"""Share of active latents where k does not determine it."""


class Pair(NamedTuple):
    """One training, alone and with saefast inside, from the same weights."""

    peer: str
    mode: str
    alone: Callable[[Tensor], Any]
    inside: Callable[[Tensor], Any]
    loss_of: Callable[[Any], float]


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Return two rows for each training of each peer, the second with its `speedup`."""
    x, weights = draw(shape)
    unit = gemm(x, weights.w_enc)
    rows: list[dict[str, Any]] = []
    for pair in _pairs(shape, weights, x):
        agrees = _same_losses(pair, x)
        contestants = [
            Contestant(pair.peer, f"{pair.mode}, {who}", partial(step, x), agrees)
            for who, step in (("alone", pair.alone), ("saefast inside", pair.inside))
        ]
        timed = time_rounds("inside", shape, unit, contestants, max(3, rounds // 3))
        timed[2]["speedup"] = round(timed[1]["ms"] / timed[2]["ms"], 2)
        rows.extend(timed if not rows else timed[1:])
        del pair, contestants
        gc.collect()
    return rows


def _pairs(shape: Shape, weights: Weights, x: Tensor) -> Iterator[Pair]:
    if peers.load("sae_lens"):
        lens = partial(peers.sae_lens_training, shape, weights, LR)
        for mode, variant, settings in (
            ("TopK", "TopK", {}),
            # SAELens cannot do this alone: with rescaled activations its sparse backward pass
            # raises.
            ("TopK, activations sparse inside", "TopK", {"use_sparse_activations": True}),
            ("BatchTopK", "BatchTopK", {}),
        ):
            alone = lens(variant=variant)
            inside = lens(variant=variant, inside=True, **settings)
            yield Pair("SAELens", mode, alone.step, inside.step, lambda out: float(out.loss))
        level = _exceeded(x, weights)
        lowered = weights._replace(b_enc=weights.b_enc - level)
        raised: dict[str, Any] = {"jumprelu_init_threshold": level}
        for variant, of, more in (("Standard", lowered, {}), ("JumpReLU", weights, raised)):
            alone, inside = (
                peers.sae_lens_training(shape, of, LR, variant=variant, inside=ours, **more)
                for ours in (False, True)
            )
            mode = f"{variant}, {_ACTIVE:.0%} active"
            yield Pair("SAELens", mode, alone.step, inside.step, lambda out: float(out.loss))
    if peers.load("sparsify"):
        alone, inside = (peers.sparsify_training(shape, weights, LR) for _ in range(2))
        yield Pair("sparsify", "TopK", alone.step, partial(with_sparsify_enabled, inside), float)
    if peers.load("dictionary_learning"):
        learning = partial(peers.dictionary_learning_training, shape, weights, LR)
        yield Pair(
            "dictionary_learning", "TopK", learning().step, learning(inside=True).step, float
        )


def _exceeded(x: Tensor, weights: Weights) -> float:
    """Return the value that a share `_ACTIVE` of pre-activations exceeds, as in trained SAEs."""
    some = x[:64]
    scores = (some - weights.b_dec) @ weights.w_enc.T + weights.b_enc
    # Halfway between two values, so that rounding cannot change the result.
    return float(scores.flatten().topk(round(_ACTIVE * scores.numel()) + 1).values[-2:].mean())


def with_sparsify_enabled(training: Training, x: Tensor) -> object:
    """Take a step of sparsify with saefast inside."""
    switch = importlib.import_module("saefast.integrations.sparsify")
    switch.enable()
    try:
        return training.step(x)
    finally:
        switch.disable()


def _same_losses(pair: Pair, x: Tensor) -> bool:
    """Return whether the losses of a few steps agree, on batches that differ."""
    for number in range(_STEPS):
        batch = x.roll(number, 1)
        alone, inside = (pair.loss_of(step(batch)) for step in (pair.alone, pair.inside))
        if abs(inside / alone - 1) > _TOLERANCE:
            return False
    return True
