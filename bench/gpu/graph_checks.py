"""Checks that need a real GPU: captured steps, and memory beyond 2^31 elements."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import saefast
from bench.cases import Shape, Weights
from bench.gpu.contest import lowered, model
from bench.gpu.finding import Finding, drawn_on
from bench.gpu.worker import Item
from saefast import FusedStep, TrainConfig
from saefast.train.objectives import objective_of

VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu")


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield a captured step of each variant, then the checks of far addresses."""
    for variant in VARIANTS:
        yield Item(f"graph of {variant}", partial(_captured, variant), {"holds": False})
    yield Item("far addresses", far_addresses, {"holds": False})


def _captured(variant: str) -> Iterator[dict[str, Any]]:
    yield captured_step(variant).row()


def captured_step(variant: str) -> Finding:
    """Check that a captured step has the bits of an eager one, with settings of `TrainConfig`."""
    shape = Shape(96, 1000, 16, 128)
    x, weights = drawn_on(shape, "cuda")
    if variant in ("relu", "jumprelu"):
        weights = lowered(weights, x - weights.b_dec, shape.k)
    eager, captured = (_default(shape, weights, variant) for _ in range(2))
    for step in (eager, captured):  # the first step differs in kind if codes may be dense
        step(x), step(x)
    replay = captured.capture(x)
    losses = [(float(eager(x * i).loss), float(replay(x * i).loss)) for i in (1, 2, 3)]
    same = all(a == b for a, b in losses) and all(
        map(torch.equal, eager.sae.parameters(), captured.sae.parameters())
    )
    return Finding(f"a captured step of {variant} is the step", shape, same, {})


def _default(shape: Shape, weights: Weights, variant: str) -> FusedStep:
    sae = model(shape, weights, variant=variant)
    config = TrainConfig(latents=shape.m, k=shape.k, variant=variant)
    step = FusedStep(
        sae, rules=config.rules, objective=objective_of(config, sae), auxk=config.auxk, lr=1e-3
    )
    assert config.auxk is not None
    step.idle[::8] = config.auxk.idle_limit()
    return step


def far_addresses() -> Iterator[dict[str, Any]]:
    """Yield checks of decodes, sums and encodes beyond 2^31 elements."""
    return (finding.row() for finding in _far_addresses())


def _far_addresses() -> Iterator[Finding]:
    far = Shape(2049, (1 << 20) + 1, 2, 3)
    w_dec = torch.zeros(far.m, far.d, device="cuda")
    w_dec[-1] = torch.arange(far.d)
    values = torch.tensor([[1.0, 2.0]] * far.n, device="cuda")
    indices = torch.tensor([[far.m - 1, 0]] * far.n, device="cuda")
    out = saefast.sparse_decode(values, indices, w_dec)
    yield Finding("decode beyond 2^31", far, bool((out == w_dec[-1]).all()), {})
    sums = torch.ops.saefast.latent_sum(values, indices, out, far.m)
    right = bool((sums[-1] == 3 * w_dec[-1]).all() and (sums[0] == 6 * w_dec[-1]).all())
    yield Finding("sums beyond 2^31", far, right, {})
    code = saefast.topk_encode(w_dec[-1:].expand(far.n, -1), w_dec, k=1)
    yield Finding("encode beyond 2^31", far, bool((code.indices == far.m - 1).all()), {})
