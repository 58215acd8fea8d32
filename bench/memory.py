"""memory: peak of a process that trains at d 768, m 131072, k 32, n 4096."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.cases import Shape

SHAPES = (Shape(768, 131072, 32, 4096),)
_PROGRAM = """
import json, sys
from bench.measure import peak_memory
import torch, saefast
d, m, k, n, steps = map(int, sys.argv[1:])
imported = peak_memory()
step = saefast.FusedStep(saefast.SAE(d, m, k=k, seed=0))
for seed in range(steps):
    step(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))
print(json.dumps({"peak_gb": round(peak_memory(), 3), "after_import_gb": round(imported, 3)}))
"""


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Measure one process that takes a few steps."""
    steps = max(2, min(rounds, 4))
    arguments = [str(number) for number in (*shape, steps)]
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    state = 6 * 4 * shape.m * shape.d / 1e9
    row = {
        "case": "memory",
        "shape": shape._asdict(),
        "rival": "saefast",
        "mode": "exact",
        "steps": steps,
        "weights_and_moments_gb": round(state, 3),
        **json.loads(result.stdout),
    }
    return [row]
