"""subspace: time and memory for the principal directions of m rows in d dimensions.

saefast computes them in float64, from the Gram matrix or by QR of blocks; the rivals are SVDs in
float32 of the whole matrix, run where they take minutes rather than hours. k and n of a shape have
no meaning here.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cases import Shape
from bench.measure import Contestant, time_rounds
from saefast.linalg import side_by_side
from saefast.subspace.spectra import Decomposition, decompose
from saefast.unit_rows import UnitRows

SHAPES = (Shape(256, 8192, 0, 0), Shape(768, 32768, 0, 0), Shape(4096, 131072, 0, 0))
_FEASIBLE = 1024
"""Largest d at which rivals run, with more than one round."""
_PROGRAM = """
import json, sys, time
from bench import subspace
from bench.measure import peak_memory
import torch
d, m = map(int, sys.argv[2:])
rows = subspace.draw(d, m)
before = peak_memory()
start = time.perf_counter()
subspace.RUNS[sys.argv[1]](rows)
seconds = time.perf_counter() - start
peak = peak_memory()
print(json.dumps({"once_ms": round(seconds * 1e3, 1), "peak_gb": round(peak, 3),
                  "input_gb": round(4 * m * d / 1e9, 3), "beyond_gb": round(peak - before, 3)}))
"""


def draw(d: int, m: int) -> Tensor:
    """Draw unit rows with a spread of scales over the dimensions, [m, d]."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(m, d)
    spread = torch.logspace(0, -1, d)
    for part in rows.split(4096):
        part.normal_(generator=generator).mul_(spread)
        part /= part.norm(dim=1, keepdim=True)
    return rows


def decomposed(rows: Tensor, method: str) -> Decomposition:
    """Decompose rows as `fit_subspaces` does."""
    with side_by_side() as run:
        return decompose([UnitRows.of_rows(rows, torch.arange(len(rows)))], method, run)[0]


def _ours(method: str) -> Any:
    return lambda rows: decomposed(rows, method).eigenvalues.sqrt()


RUNS: dict[str, Any] = {
    "saefast gram": _ours("gram"),
    "saefast svd": _ours("svd"),
    "torch svd": lambda rows: torch.linalg.svd(rows, full_matrices=False).S,
    "numpy svd": lambda rows: torch.from_numpy(np.linalg.svd(rows.numpy(), full_matrices=False)[1]),
}
"""Functions that return the singular values [d] and compute the directions on the way."""


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Measure memory and one time of each in a separate process, then time rounds of all in one."""
    feasible = shape.d <= _FEASIBLE
    rows = [_alone(name, shape) for name in (RUNS if feasible else ["saefast gram"])]
    return rows + _timed(shape, min(rounds, 5)) if feasible else rows


def _alone(name: str, shape: Shape) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, name, str(shape.d), str(shape.m)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    rival, mode = name.split()
    row = {"case": "subspace memory", "shape": shape._asdict(), "rival": rival, "mode": mode}
    figures: dict[str, Any] = json.loads(result.stdout)
    return row | figures


def _timed(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    rows = draw(shape.d, shape.m)
    truth = _ours("svd")(rows)
    contestants = []
    for name, run in RUNS.items():
        rival, mode = name.split()
        error = float((run(rows).double() - truth).abs().max() / truth.max())
        bound = 1e-8 if rival == "saefast" else 1e-4
        contestants.append(Contestant(rival, mode, partial(run, rows), error < bound))
    out = torch.empty(shape.d, shape.d)
    # The unit is the product that makes a Gram matrix, in float32.
    return time_rounds(
        "subspace", shape, lambda: torch.mm(rows.T, rows, out=out), contestants, rounds
    )
