"""worlds: rows of synthetic worlds per second, beside the sum of their features alone.

The floor is that sum: for every feature that fires, d numbers are read and added. The rival is
PlantedWorld, which draws a number for every existing feature. On a shared machine, rows per second
of processor time are more meaningful than rows per second.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.cases import Shape
from saefast.ops.sparse_decode import sparse_decode
from saefast.synthetic import LowRankWorld, PlantedWorld, World, nested_world, sphere_world
from saefast.synthetic.world import BLOCK

_WORLDS: dict[str, Callable[[], World]] = {
    "low rank": LowRankWorld.create,
    "constant": lambda: sphere_world(3200, 128),
    "log uniform": lambda: sphere_world(3200, 128, firing="log_uniform"),
    "nested": nested_world,
}
_BLOCKS = 32
SHAPES = (Shape(128, 3200, 20, _BLOCKS * BLOCK),)


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each world: rows per second, floor, and bytes and operations of a row."""
    planted = PlantedWorld.create(shape.m, shape.d, active=shape.k)
    rows = [_row(name, make(), rounds) for name, make in _WORLDS.items()]
    seconds = _median(lambda: planted.sample(BLOCK, 0), rounds)
    return [*rows, _entry("PlantedWorld", shape._asdict(), BLOCK / seconds, rounds)]


def _row(name: str, world: World, rounds: int) -> dict[str, Any]:
    n = _BLOCKS * BLOCK
    drawn = world.sample(BLOCK)
    _check(world)
    active = int((drawn.values > 0).sum()) / BLOCK
    made, floor, busy = [], [], []
    for _ in range(rounds):
        before = time.process_time()
        made.append(_seconds(lambda: sum(len(block.x) for block in world.blocks(n))))
        busy.append(time.process_time() - before)
        floor.append(
            _BLOCKS * _seconds(lambda: sparse_decode(drawn.values, drawn.indices, world.features))
        )
    shape = {"d": world.d, "m": world.m, "k": round(active, 2), "n": n}
    ratio = statistics.median(a / b for a, b in zip(made, floor, strict=True))
    return _entry(name, shape, n / statistics.median(made), rounds) | {
        "rows_per_processor_second": round(n / statistics.median(busy)),
        "floor_rows_per_second": round(n / statistics.median(floor)),
        "floor_ratio": round(ratio, 3),
        "bytes_per_row": round(4 * world.d * (active + 1)),
        "flops_per_row": round(2 * world.d * active),
    }


def _entry(name: str, shape: dict[str, Any], rate: float, rounds: int) -> dict[str, Any]:
    return {
        "case": "worlds",
        "shape": shape,
        "rival": "saefast" if name in _WORLDS else name,
        "mode": name if name in _WORLDS else "sample",
        "rows_per_second": round(rate),
        "rounds": rounds,
        "agrees": True,
    }


def _check(world: World) -> None:
    """Check the mean number of features per row to five standard errors."""
    drawn = world.sample(16 * BLOCK, seed=2)
    counts = (drawn.values > 0).sum(1).double()
    error = abs(float(counts.mean()) - float(world.firing_rate.sum()))
    if error > 5 * float(counts.std()) / len(counts) ** 0.5:
        raise RuntimeError(f"{world.m} features fire too often or not often enough; not timed")


def _median(run: Callable[[], object], rounds: int) -> float:
    return statistics.median(_seconds(run) for _ in range(rounds))


def _seconds(run: Callable[[], object]) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
