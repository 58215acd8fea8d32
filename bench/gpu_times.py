"""Times on a GPU: its own ceilings, floors that follow from them, contestants one after another."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from bench.cases import Shape

Run = Callable[[], object]
_COLD_BYTES = 256 << 20
"""Written before each run, so that nobody finds his operands in the L2 cache."""


class Contestant(NamedTuple):
    """Something to time. It is built when its turn comes, for not all fit the memory at once."""

    case: str
    rival: str
    mode: str
    build: Callable[[], Run]
    agrees: Callable[[Any], bool]
    """whether what the first run returned is right"""

    @property
    def name(self) -> str:
        """As it is called where it is left out."""
        return f"{self.case}: {self.rival} ({self.mode})"


class Ceilings(NamedTuple):
    """What this GPU does in a second when it does nothing else."""

    bf16_flops: float
    copy_bytes: float
    l2_bytes: float


def measured_ceilings() -> Ceilings:
    """A large product, a large copy, and many copies of what stays in the L2 cache."""
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
    """Milliseconds that the operations and bytes of each case take at the ceilings.

    Decoder rows are gathered as bfloat16. A share above one means that a cache held them.
    """
    n, k, d, m = shape.n, shape.k, shape.d, shape.m
    memory, near = ceilings.copy_bytes, ceilings.l2_bytes
    product = shape.gemm_flops / ceilings.bf16_flops
    # Of every 32 columns their maximum, and the k groups that hold a row's best: written and read.
    selection = 2 * (4 * n * m / 32 + 4 * 32 * n * k) / memory
    gather = 2 * n * k * d / memory
    sort = 3 * 16 * n * k / memory  # three passes over keys and places of 4 bytes, read and written
    sums = 4 * n * k * d / near
    adam = 26 * 2 * m * d / memory
    seconds = {
        "encode": product + selection,
        "batch_topk": product + selection,
        "decode": gather,
        # Rows again for the values' gradients; sums over tokens for the weight's, which is dense.
        "decode+backward": 2 * gather + sort + sums / 2 + 4 * m * d / memory,
        "update": sort + sums + adam,
        "step": product + selection + gather + sort + sums + adam,
    }
    return {case: 1e3 * value for case, value in seconds.items()}


def milliseconds(runs: list[Run], rounds: int) -> list[list[float]]:
    """Of each run in every round; the first two rounds do not count."""
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


class Timer:
    """Times contestants beside one bfloat16 product of the encode; collects who was left out."""

    def __init__(self, ceilings: Ceilings, rounds: int) -> None:
        self.ceilings, self.rounds = ceilings, rounds
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def race(self, shape: Shape, unit: Run, contestants: Iterator[Contestant]) -> None:
        """Adds a row of each that runs here and agrees."""
        floors = floors_of(shape, self.ceilings)
        for contestant in contestants:
            try:
                row = self._timed(contestant, shape, unit, floors[contestant.case])
            # A rival may fail in any way: what it says is kept, and the next is timed.
            except Exception as error:
                self.skipped.append(f"{contestant.name} at {tuple(shape)}: {_first_line(error)}")
                print(self.skipped[-1], flush=True)
            else:
                self.rows.append(row)
                print(line(row), flush=True)
            torch.cuda.empty_cache()

    def _timed(self, one: Contestant, shape: Shape, unit: Run, floor: float) -> dict[str, Any]:
        run = one.build()
        if not one.agrees(run()):
            raise RuntimeError("does not agree, so it was not timed")
        own, of_unit = milliseconds([run, unit], self.rounds)
        return row_of(one, shape, own, of_unit, floor)


def row_of(
    one: Contestant, shape: Shape, own: list[float], of_unit: list[float], floor: float
) -> dict[str, Any]:
    """What the times of a contestant and of the product beside it come to."""
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
        "gemm_ratio": round(statistics.median(a / b for a, b in zip(own, of_unit, strict=True)), 3),
    }


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row of ours with how many times as long every rival takes for the same."""
    return [
        {
            **row,
            "times_faster_than": {
                f"{other['rival']} {other['mode']}": round(other["ms"] / row["ms"], 2)
                for other in rows
                if other["rival"] != "saefast"
                and (other["case"], other["shape"]) == (row["case"], row["shape"])
            },
        }
        if row["rival"] == "saefast"
        else row
        for row in rows
    ]


def line(row: dict[str, Any]) -> str:
    """A row to print."""
    where = " ".join(f"{name}={size}" for name, size in row["shape"].items())
    return (
        f"{row['case']:16} {where:32} {row['rival']:14} {row['mode']:22} {row['ms']:10.3f} ms "
        f"{row['floor_share']:6.1%} of the floor {row['gemm_ratio']:7.2f} products"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
