"""Matching on a GPU: nearest of a million features, and one-to-one of a large dictionary."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.gpu_worker import Item
from bench.shapes import Shape

NEAREST = Shape(2304, 1 << 20, 1, 1 << 20)
"""Size of the search for nearest features.

Its products alone take 6.5 s a side at 785 TFLOP/s. saefast searches both sides, each in 400 pieces
of at most 32,768 rows. Estimated: 40 s at a third of that speed, 80 s for fp32 blocks.
"""
ONE_TO_ONE = Shape(4096, 131072, 1, 131072)
"""Size of the one-to-one matching; n is the number of features of the other dictionary."""
_MEMORY = 16.0
_SHARED = 0.9
"""Weight of a feature in its counterpart in the other dictionary, beside 0.1 of noise."""
_BLOCK_FLOATS = 1 << 30


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield saefast's matching and torch's blockwise products."""
    yield from matchings(NEAREST, ONE_TO_ONE, "cuda", rounds=1)


def matchings(nearest: Shape, one_to_one: Shape, device: str, rounds: int) -> Iterator[Item]:
    """Yield all contestants at these sizes."""
    contestants: list[tuple[str, Shape, str, str, Callable[[Tensor, Tensor], Tensor], bool]] = [
        ("match", one_to_one, "saefast", "one to one, certified", _certified, True),
        ("nearest", nearest, "saefast", "exact", _nearest, True),
        ("nearest", nearest, "torch", "bf16 blocks", partial(_blocks, torch.bfloat16), False),
        ("nearest", nearest, "torch", "fp32 blocks", partial(_blocks, torch.float32), True),
    ]
    for case, shape, rival, mode, match, exact in contestants:
        facts = {"case": case, "shape": shape._asdict(), "rival": rival, "mode": mode}
        run = partial(_timed, shape, device, match, facts, rounds, exact=exact)
        yield Item(f"{case}: {rival} ({mode})", run, facts)


def _timed(
    shape: Shape,
    device: str,
    match: Callable[[Tensor, Tensor], Tensor],
    facts: dict[str, Any],
    rounds: int,
    *,
    exact: bool,
) -> Iterator[dict[str, Any]]:
    a, b, truth = dictionaries(shape, device)
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        partner = match(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
        wrong = float((partner.to(truth.device) != truth).double().mean())
        if wrong > (0.0 if exact else 1e-3):
            raise RuntimeError(f"does not agree: {wrong:.2%} of the partners are others")
    ms = statistics.median(times)
    flops = shape.gemm_flops / (ms * 1e-3)
    yield {
        **facts,
        "ms": round(ms, 1),
        "p20": round(min(times), 1),
        "p80": round(max(times), 1),
        "gemm_tflops": round(flops * 1e-12, 1),
        "rounds": rounds,
        "agrees": True,
    }


def dictionaries(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows [m, d] twice, a noisy permutation of each other, and the partners [m]."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    a = torch.nn.functional.normalize(normal(shape.m, shape.d))
    partner = torch.randperm(shape.m, generator=generator, device=device)
    b = normal(shape.m, shape.d)
    for part, places in zip(b.split(1 << 16), partner.split(1 << 16), strict=True):
        own = torch.nn.functional.normalize(part)
        part.copy_(torch.nn.functional.normalize(_SHARED * a[places] + (1 - _SHARED) * own))
    truth = torch.empty_like(partner)
    truth[partner] = torch.arange(shape.m, device=device)
    return a, b, truth


def _certified(a: Tensor, b: Tensor) -> Tensor:
    matches = saefast.match_features(a, b, one_to_one=True, memory=_MEMORY, progress=False)
    if not matches.certified:
        raise RuntimeError(f"is not certified: {matches.value} of at most {matches.upper_bound}")
    return matches.partner


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    return saefast.match_features(a, b, memory=_MEMORY, progress=False).partner


def _blocks(dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    """Return the nearest features by products of blocks, from one side only."""
    others = b.to(dtype).T
    rows = max(1, _BLOCK_FLOATS // len(b))
    return torch.cat([(part.to(dtype) @ others).argmax(1) for part in a.split(rows)])
