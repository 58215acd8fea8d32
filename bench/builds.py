"""builds: training steps of one process with two builds of saefast, in alternating processes.

python -m bench builds COMMIT=FOLDER COMMIT=FOLDER

A folder has the build of a commit, which `pip install --no-deps --target FOLDER .` installs there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.cases import SHAPES
from bench.shapes import Shape

_STEPS, _FIRST = 8, 2
"""Steps of a process, and those at its beginning that are not counted."""
_PROGRAM = """
import hashlib, json, statistics, sys, time
import torch, saefast
d, m, k, n, steps, first = map(int, sys.argv[1:])
rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
rows *= torch.logspace(0, -1, d)
step, seconds = saefast.FusedStep(saefast.SAE(d, m, k=k, seed=0), lr=1e-3), []
for _ in range(steps):
    begun = time.perf_counter()
    step(rows)
    seconds.append(time.perf_counter() - begun)
state = sorted(step.state_dict().items())
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in state)).hexdigest()
ms = 1e3 * statistics.median(seconds[first:])
print(json.dumps({"ms": ms, "digest": digest, "package": saefast.__file__}))
"""


def main(arguments: Sequence[str]) -> int:
    """Time steps with two builds, and print and write a row for each."""
    parser = argparse.ArgumentParser(prog="python -m bench builds", description=main.__doc__)
    parser.add_argument("builds", nargs=2, metavar="COMMIT=FOLDER", help="older and newer build")
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    parser.add_argument("--rounds", type=int, default=15, help="processes a build (default 15)")
    parser.add_argument("--shape", help="d,m,k,n (default: the first shape of the benchmarks)")
    chosen = parser.parse_args(arguments)
    shape = SHAPES[0]
    if chosen.shape:
        shape = Shape(*map(int, chosen.shape.split(",")))
    builds = {}
    for build in chosen.builds:
        commit, _, folder = build.partition("=")
        builds[commit] = Path(folder).resolve()
    rows = race(shape, chosen.rounds, builds)
    for row in rows:
        print(row)
    if chosen.json:
        result = {"machine": record.machine(), "commit": record.commit(), "rows": rows}
        record.write(chosen.json, result)
    return 0


def race(shape: Shape, rounds: int, builds: dict[str, Path]) -> list[dict[str, Any]]:
    """Time steps in alternating processes.

    Args:
        shape: sizes of a step.
        rounds: number of processes of each build.
        builds: folders of two builds by their commit, the older one first.

    Returns:
        A row for each build. `ratio` is the median over rounds of its time by that of the older
        one, `agrees` whether weights and moments have the same bits.
    """
    results: dict[str, list[dict[str, Any]]] = {commit: [] for commit in builds}
    for number in range(rounds):
        order = list(builds) if number % 2 == 0 else list(reversed(builds))
        for commit in order:
            results[commit].append(_measured(shape, builds[commit]))
    (older, *_), rows = results.values(), []
    for commit, each in results.items():
        times = [result["ms"] for result in each]
        ratios = [mine / other["ms"] for mine, other in zip(times, older, strict=True)]
        low, *_, high = statistics.quantiles(times, n=5)
        rows.append(
            {
                "case": "builds",
                "shape": shape._asdict(),
                "rival": "saefast",
                "mode": commit,
                "agrees": {result["digest"] for result in each} == {older[0]["digest"]},
                "rounds": rounds,
                "ms": round(statistics.median(times), 3),
                "p20": round(low, 3),
                "p80": round(high, 3),
                "ratio": round(statistics.median(ratios), 4),
            }
        )
    return rows


def _measured(shape: Shape, folder: Path) -> dict[str, Any]:
    """Return the output of a process that takes steps with a build."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, *map(str, (*shape, _STEPS, _FIRST))],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if not Path(result["package"]).is_relative_to(folder):
        raise ValueError(
            f"{folder} must have a build of saefast, but {result['package']} was imported; install "
            f"one there by `pip install --no-deps --target {folder} .`"
        )
    return result
