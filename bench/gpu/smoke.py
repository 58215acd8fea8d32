"""Smoke test of every kernel at a tiny size.

With CUDA_LAUNCH_BLOCKING=1 the first fault is raised where it occurs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, Weights
from bench.gpu.contest import lowered, model
from bench.gpu.finding import drawn_on
from bench.gpu.worker import Item
from saefast import FusedStep, Rules, TrainConfig
from saefast.ops import gpu
from saefast.ops.encode_gpu import encode_rounded
from saefast.ops.gpu_screens import SCREENS, GpuScreen
from saefast.train.objectives import objective_of

SHAPE = Shape(48, 160, 5, 24)
_HOT = 600
"""Rows on which one latent is active: more than one piece of a sum holds."""
_VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu")


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield one use of the kernels after another."""
    for name, use in uses(SHAPE, "cuda"):
        yield Item(name, partial(_row, name, use))


def _row(name: str, use: Callable[[], Any]) -> list[dict[str, Any]]:
    results = [part for part in use() if isinstance(part, Tensor) and part.is_floating_point()]
    finite = all(bool(part.isfinite().all()) for part in results)
    return [{"item": name, "holds": finite}]


def uses(shape: Shape, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names and functions that use the kernels and return tensors that must be finite."""
    x, weights = drawn_on(shape, device)
    operands = (x, weights.w_enc, weights.b_enc)
    selects = ["triton", "cuda"] if gpu.has_cuda() else ["triton"]
    for screen, by, exact in product(SCREENS, selects, (True, False)):
        if screen.product == "float16" and not exact:
            continue
        name = f"encode {screen} {by} {'exact' if exact else 'rounded'}"
        yield name, partial(_encode, operands, shape.k, screen, by, exact=exact)
    few = torch.full_like(weights.b_enc, -torch.inf)
    few[: shape.k - 1] = 0.0
    yield (
        "encode rows that are scored in full",
        lambda: saefast.topk_encode(x, weights.w_enc, few, k=shape.k).values[:, : shape.k - 1],
    )
    for precision, room in product(("exact", "bf16"), (shape.m, 1)):
        settings: dict[str, Any] = {"threshold": 0.0, "width": room, "precision": precision}
        yield (
            f"threshold {precision}, room for {room}",
            partial(saefast.threshold_encode, *operands, **settings),
        )
    yield "decode and gradients", partial(_gradients, x, weights, shape.k)
    yield "gradients of a latent with many entries", partial(_hot_latent, weights)
    for variant in _VARIANTS:
        yield f"default steps of {variant}", partial(_steps, shape, x, weights, variant)
    for precision in ("bf16", "bf16_weights"):
        yield f"steps in {precision}", partial(_steps, shape, x, weights, "topk", precision)
    yield "steps without clipping", partial(_steps, shape, x, weights, "topk", clip=False)
    hot = x[:1].repeat(_HOT, 1)
    yield "a step on many rows of one latent", partial(_steps, shape, hot, weights, "topk")


def _encode(
    operands: tuple[Tensor, Tensor, Tensor], k: int, screen: GpuScreen, by: str, *, exact: bool
) -> Any:
    x, w_enc, b_enc = operands
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_columns", w_enc, screen.product)
    return encode_rounded(x, w_enc, b_enc, None, k, exact, screen, left, right, by)


def _gradients(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (x, *weights)]
    rows, w_enc, b_enc, w_dec, b_dec = leaves
    code = saefast.topk_encode(rows, w_enc, b_enc, k=k)
    out = saefast.sparse_decode(code.values, code.indices, w_dec, b_dec)
    return torch.autograd.grad(out.square().sum(), leaves)


def _hot_latent(weights: Weights) -> tuple[Tensor, ...]:
    """Return the gradient of a latent with more entries than one piece of a sum holds."""
    weight = weights.w_dec.clone().requires_grad_()
    values = weight.new_ones(8, 80)
    out = saefast.sparse_decode(values, torch.zeros_like(values, dtype=torch.int64), weight)
    return torch.autograd.grad(out.square().sum(), weight)


def _steps(
    shape: Shape,
    x: Tensor,
    weights: Weights,
    variant: str,
    precision: str = "exact",
    *,
    clip: bool = True,
) -> list[Tensor]:
    """Run two default steps, the first of which may be dense, with some dead latents."""
    if variant in ("relu", "jumprelu"):
        weights = lowered(weights, x - weights.b_dec, shape.k)
    sae = model(shape, weights, variant=variant)
    config = TrainConfig(latents=shape.m, k=shape.k, variant=variant, precision=precision)
    step = FusedStep(
        sae,
        rules=config.rules if clip else Rules(),
        objective=objective_of(config, sae),
        precision=precision,
        auxk=config.auxk,
    )
    results = []
    for _ in range(2):
        step.idle[::8] = 10**9
        result = step(x)
        results += [result.loss, result.squares]
    return [*results, *(parameter.detach() for parameter in sae.parameters())]
