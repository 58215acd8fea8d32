"""ranks: a step of several processes (gloo, a thread each) beside one process, and a model of GPUs.

Rows of the rival "memory" are of a training that ends with a folder. Rows of the rival "model" are
computed, not measured: `saefast plan` for GPUs, and plain data parallelism by the same speeds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cases import Shape
from saefast import Rules, TrainConfig
from saefast.train.planning import MACHINES, plan_training
from saefast.train.planning.exchanges import Exchange

SHAPES = (Shape(768, 16384, 32, 2048),)
_PROCESSES = (1, 2, 4)
WIDE, _WIDE_STEPS = Shape(768, 131_072, 32, 512), 3
"""Training whose memory is measured."""
_WIDE_PROCESSES = (1, 4)
_MODELLED = (Shape(4096, 131_072, 64, 8192), Shape(4096, 1_048_576, 64, 8192))
_RANKS = {"h100-nvlink": (1, 2, 4, 8), "h100-400g": (8, 16, 32, 64), "h100-25g": (8,)}
_DENSE = 16
"""Bytes for each weight of a side that a rank receives when dense gradients are averaged: both
sides, twice over the network in float32."""


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Measure processes on this machine, compare their weights, and add the rows of the model."""
    measured = [*steps(shape, rounds), *memory()]
    return [*measured, *(row for each in _MODELLED for row in model(each))]


def steps(shape: Shape, rounds: int, processes: Sequence[int] = _PROCESSES) -> list[dict[str, Any]]:
    """Return rows with times and bytes of a step, and the weights and moments compared."""
    results = {number: _measured("steps", shape, number, rounds) for number in processes}
    return _rows("saefast", shape, results)


def memory(shape: Shape = WIDE, processes: Sequence[int] = _WIDE_PROCESSES) -> list[dict[str, Any]]:
    """Return rows with the largest memory of each process of a training, and its files compared."""
    results = {number: _measured("memory", shape, number, _WIDE_STEPS) for number in processes}
    return _rows("memory", shape, results)


def _rows(rival: str, shape: Shape, results: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    digests = {processes: result.pop("digest") for processes, result in results.items()}
    return [
        {
            "case": "ranks",
            "shape": shape._asdict(),
            "rival": rival,
            "mode": f"{processes} process{'es' * (processes > 1)}",
            "agrees": digests[processes] == digests[1],
            **result,
        }
        for processes, result in results.items()
    ]


def model(shape: Shape) -> list[dict[str, Any]]:
    """Return rows of the model of a step on GPUs, split as saefast does and data parallel."""
    # Without AuxK and clipping, whose exchanges depend on settings, and without the rows, which
    # both ways of training distribute.
    config = TrainConfig(shape.m, shape.k, batch_size=shape.n, auxk=None, rules=Rules())
    one = plan_training(config, shape.d, MACHINES["h100-nvlink"]).seconds
    rows = []
    for kind, sizes in _RANKS.items():
        for ranks in sizes:
            machine = MACHINES[kind]
            plan = plan_training(config, shape.d, machine, ranks=ranks)
            of_rows = plan.exchanges["rows"] if ranks > 1 else Exchange(0, 0)
            seconds = plan.seconds.total - plan.seconds.rows
            dense = _DENSE * shape.m * shape.d * (ranks - 1) // ranks
            parallel = (one.encode + one.gather) / ranks + one.update
            row = {
                "case": "ranks",
                "shape": shape._asdict(),
                "rival": "model",
                "mode": kind,
                "ranks": ranks,
                "ms": round(seconds * 1e3, 3),
                "efficiency": round(one.total / seconds / ranks, 3),
                "received": plan.received - of_rows.received,
                "calls": plan.calls - of_rows.calls,
                "data_parallel_ms": round((parallel + dense / machine.network) * 1e3, 3),
                "data_parallel_received": dense,
            }
            rows.append(row)
    return rows


def _measured(what: str, shape: Shape, processes: int, rounds: int) -> dict[str, Any]:
    """Return the output of rank 0 of some processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "bench.ranks_worker"]
    done = subprocess.run(
        [*command, what, *map(str, shape), str(rounds)],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
