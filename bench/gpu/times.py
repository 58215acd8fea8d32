"""Times on a GPU: measured ceilings, floors that follow from them, and contestants."""

import functools
import gc
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.gpu.worker import Item
from bench.shapes import Shape

Run = Callable[[], object]
_COLD_BYTES = 256 << 20
"""Bytes written before each run, so that no operands are left in the L2 cache."""
ROUNDS = 20
_LEAST_ROUNDS = 5
_SECONDS = 1.5
"""Seconds for which a contestant is timed, if that is more than the least rounds."""


class Contestant(NamedTuple):
    """Something to time, built only at its turn, since not all fit into memory at once."""

    case: str
    rival: str
    mode: str
    build: Callable[[], Run]
    agrees: Callable[[Any], bool]
    """function that returns whether the result of the first run is correct"""

    @property
    def name(self) -> str:
        """Case, rival and mode in one text."""
        return f"{self.case}: {self.rival} ({self.mode})"


class Ceilings(NamedTuple):
    """Measured maximum rates of this GPU, per second."""

    bf16_flops: float
    copy_bytes: float
    l2_bytes: float


Unmeasured = Callable[[], Ceilings]
"""Function that returns the ceilings, measured at its first call."""


def ceilings_of(facts: dict[str, Any]) -> Unmeasured:
    """Return a function for the ceilings, which are known or measured at its first call."""
    known = facts.get("ceilings")
    if known is not None:
        return lambda: Ceilings(**known)
    return functools.cache(measured_ceilings)


def ceilings_item(ceilings: Unmeasured) -> Item:
    """Return an item that reports the ceilings to the whole session."""
    return Item("ceilings", lambda: [{"ceilings": ceilings()._asdict()}], is_fact=True)


def measured_ceilings() -> Ceilings:
    """Time a large product, a large copy, and many copies within the L2 cache."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    large, small = (torch.empty(2, size, device="cuda") for size in (1 << 28, 1 << 21))
    copies = 100

    def copy_small() -> None:
        for _ in range(copies):
            small[1].copy_(small[0])

    copy_small()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy_small()
    runs: list[Run] = [lambda: torch.mm(a, b), lambda: large[1].copy_(large[0]), graph.replay]
    product, far, near = map(statistics.median, milliseconds(runs, 20))
    return Ceilings(
        2 * 8192**3 / (product * 1e-3),
        large.nbytes / (far * 1e-3),
        copies * small.nbytes / (near * 1e-3),
    )


def floors_of(shape: Shape, ceilings: Ceilings) -> dict[str, float]:
    """Return the milliseconds of each case's operations and bytes at the ceilings.

    Decoder rows are gathered as bfloat16. A share above one means that a cache held them.
    """
    n, k, d, m = shape.n, shape.k, shape.d, shape.m
    memory, near = ceilings.copy_bytes, ceilings.l2_bytes
    product = shape.gemm_flops / ceilings.bf16_flops
    # Maxima of groups of 32 columns, and the k groups with a row's best: written and read.
    selection = 2 * (4 * n * m / 32 + 4 * 32 * n * k) / memory
    gather = 2 * n * k * d / memory
    sort = 3 * 16 * n * k / memory  # three passes over keys and places of 4 bytes, read and written
    sums = 4 * n * k * d / near
    adam = 26 * 2 * m * d / memory
    seconds = {
        "encode": product + selection,
        "threshold": product + selection,
        "batch_topk": product + selection,
        "decode": gather,
        # Rows again for the values' gradients; sums over tokens for the weight's, which is dense.
        "decode+backward": 2 * gather + sort + sums / 2 + 4 * m * d / memory,
        "update": sort + sums + adam,
        "step": product + selection + gather + sort + sums + adam,
    }
    return {case: 1e3 * value for case, value in seconds.items()}


def milliseconds(runs: list[Run], rounds: int) -> list[list[float]]:
    """Time each run in every round, without counting the first two rounds."""
    cold = torch.empty(_COLD_BYTES, dtype=torch.int8, device="cuda")
    seen: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 2):
        for times, run in zip(seen, runs, strict=True):
            cold.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            if number >= 2:
                times.append(float(begin.elapsed_time(end)))
    return seen


def raced(
    shape: Shape,
    unit: Run,
    case: str,
    contestants: Iterator[Contestant],
    ceilings: Unmeasured,
    rounds: int = ROUNDS,
) -> Iterator[Item]:
    """Yield an item for each contestant of a case, which runs independently of the others.

    If the contestants cannot even be listed, yield an item that fails.
    """
    while True:
        try:
            one = next(contestants, None)
        except Exception as error:
            facts = {"case": case, "shape": shape._asdict(), "rival": "all", "mode": "all"}
            yield Item(f"{case}: all", partial(_raise, error), facts)
            return
        if one is None:
            return
        facts = {"case": case, "shape": shape._asdict(), "rival": one.rival, "mode": one.mode}
        yield Item(one.name, partial(timed, one, shape, unit, ceilings, rounds), facts)


def _raise(error: Exception) -> list[dict[str, Any]]:
    raise error


def timed(
    one: Contestant, shape: Shape, unit: Run, ceilings: Unmeasured, rounds: int
) -> Iterator[dict[str, Any]]:
    """Build a contestant, check its result, and yield its row."""
    floor = floors_of(shape, ceilings()).get(one.case.split()[0], 0.0)
    run = one.build()
    if not one.agrees(run()):
        raise RuntimeError("does not agree, so it was not timed")
    [[first]] = milliseconds([run], 1)
    rounds = max(_LEAST_ROUNDS, min(rounds, int(_SECONDS * 1e3 / first)))
    own, of_unit = milliseconds([run, unit], rounds)
    yield row_of(one, shape, own, of_unit, floor)
    del run
    gc.collect()
    torch.cuda.empty_cache()


def row_of(
    one: Contestant, shape: Shape, own: list[float], of_unit: list[float], floor: float
) -> dict[str, Any]:
    """Return the row of a contestant: times in milliseconds, and the ratio to the product's."""
    ms = statistics.median(own)
    ordered = sorted(own)
    return {
        "case": one.case,
        "shape": shape._asdict(),
        "rival": one.rival,
        "mode": one.mode,
        "ms": round(ms, 4),
        "p20": round(ordered[len(own) // 5], 4),
        "p80": round(ordered[-1 - len(own) // 5], 4),
        "floor_ms": round(floor, 4),
        "floor_share": round(floor / ms, 3),
        "rounds": len(own),
        "agrees": True,
        "gemm_ratio": round(statistics.median(a / b for a, b in zip(own, of_unit, strict=True)), 3),
    }
