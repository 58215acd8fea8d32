"""Matching on a GPU: nearest features, and one-to-one of a large dictionary.

saefast's matchings search both sides; those of torch and FAISS search one.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import saefast
from bench.gpu.worker import Item
from bench.matching_shapes import MATCHINGS, Matching
from bench.shapes import Shape

_MEMORY = 16.0
_SHARED = 0.9
"""Weight of a feature in its counterpart in the other dictionary, beside 0.1 of noise."""
_BLOCK_FLOATS = 1 << 30
_WARM = 16
"""Share of the features, as a divisor, that are matched once before a contestant is timed."""


class Contestant(NamedTuple):
    """A way to find the partners of the rows of one dictionary in another."""

    rival: str
    mode: str
    match: Callable[[Tensor, Tensor], Tensor]
    exact: bool
    """whether all partners must be correct, instead of 99.9 %"""
    share: int = 1
    """part of the rows that is matched, as a divisor; the time is multiplied by it"""


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the contestants of a matching and rival, such as nearest:torch; by default of all."""
    name, _, rival = argument.partition(":")
    for one in [MATCHINGS[name]] if name else MATCHINGS.values():
        yield from matchings(one, "cuda", rival=rival)


def matchings(one: Matching, device: str, *, rival: str = "") -> Iterator[Item]:
    """Yield an item for each contestant of a matching, or for those of one rival."""
    for each in contestants(one, device):
        if rival in ("", each.rival):
            facts = {"case": one.case, "shape": one.shape._asdict()}
            facts |= {"rival": each.rival, "mode": each.mode}
            run = partial(_timed, one.shape, device, each, facts, one.rounds)
            yield Item(f"{one.case}: {each.rival} ({each.mode})", run, facts)


def contestants(one: Matching, device: str) -> list[Contestant]:
    """Return the contestants of a matching."""
    if one.case == "match":
        return [Contestant("saefast", "one to one, certified", _certified, True)]
    found = [
        Contestant("saefast", "exact", partial(_nearest, "saefast"), True),
        Contestant("torch", "bf16 blocks", partial(_blocks, torch.bfloat16), False),
        Contestant("torch", "fp32 blocks", partial(_blocks, torch.float32), True, one.fp32_share),
    ]
    if one.faiss:
        for half in (False, True):
            search = partial(_faiss_flat, device, half=half)
            found.append(Contestant("faiss", f"flat, {'fp16' if half else 'fp32'}", search, False))
        found.append(Contestant("faiss", "inside saefast", partial(_nearest, "faiss"), True))
    return found


def _timed(
    shape: Shape, device: str, one: Contestant, facts: dict[str, Any], rounds: int
) -> Iterator[dict[str, Any]]:
    a, b, truth = dictionaries(shape, device)
    rows = len(a) // one.share
    a, truth = a[:rows], truth[:rows]
    one.match(a[: -(-rows // _WARM)], b[: -(-len(b) // _WARM)])
    times, searches = [], list[float]()
    for _ in range(rounds):
        _wait(device)
        begin = time.perf_counter()
        with _search_time(device, searches):
            partner = one.match(a, b)
        _wait(device)
        times.append(1e3 * one.share * (time.perf_counter() - begin))
        wrong = float((partner.to(truth.device) != truth).double().mean())
        if wrong > (0.0 if one.exact else 1e-3):
            raise RuntimeError(f"does not agree: {wrong:.2%} of the partners are others")
    ms = statistics.median(times)
    sides = 2 if searches else 1
    flops = sides * shape.gemm_flops / (ms * 1e-3)
    yield {
        **facts,
        "ms": round(ms, 1),
        "p20": round(min(times), 1),
        "p80": round(max(times), 1),
        "gemm_tflops": round(flops * 1e-12, 1),
        "sides": sides,
        **({"search_ms": round(statistics.median(searches), 1)} if searches else {}),
        **({"timed_share": 1 / one.share} if one.share > 1 else {}),
        "rounds": rounds,
        "agrees": True,
    }


def _search_time(device: str, found: list[float]) -> Any:
    """Append the milliseconds of saefast's neighbour search inside the context to `found`."""
    module = importlib.import_module("saefast.match.features")
    search = module.nearest_both_ways

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        lists = search(*arguments)
        _wait(device)
        found.append(1e3 * (time.perf_counter() - begin))
        return lists

    return mock.patch.object(module, "nearest_both_ways", timed)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


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


def _nearest(backend: str, a: Tensor, b: Tensor) -> Tensor:
    matches = saefast.match_features(a, b, backend=backend, memory=_MEMORY, progress=False)
    return matches.partner


def _blocks(dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    """Return the nearest features by products of blocks, from one side only."""
    others = b.to(dtype).T
    rows = max(1, _BLOCK_FLOATS // len(b))
    return torch.cat([(part.to(dtype) @ others).argmax(1) for part in a.split(rows)])


def _faiss_flat(device: str, a: Tensor, b: Tensor, *, half: bool) -> Tensor:
    """Return the nearest features by a flat index, from one side only.

    On a GPU, rows and results stay there.
    """
    faiss = importlib.import_module("faiss")
    if device != "cuda":
        index = faiss.IndexFlatIP(b.shape[1])
        index.add(b.numpy())
        return torch.from_numpy(index.search(a.numpy(), 1)[1][:, 0])
    if not faiss.get_num_gpus():
        raise RuntimeError("FAISS sees no GPU")
    importlib.import_module("faiss.contrib.torch_utils")
    resources, config = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
    config.useFloat16 = half
    index = faiss.GpuIndexFlatIP(resources, b.shape[1], config)
    index.add(b)
    indices: Tensor = index.search(a, 1)[1][:, 0]
    torch.cuda.synchronize()  # before the resources of the search are freed
    return indices
