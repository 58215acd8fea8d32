"""Other exact solvers of sparse assignments, each in a process that can be stopped."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from saefast.match.assignment import Graph

_TIME_LIMIT = 60  # seconds for one graph

_READ = """
import json, sys, time
import torch
graph = torch.load(sys.argv[1])
start, column = graph["row_start"].numpy(), graph["column"].numpy()
similarity, size = graph["similarity"].numpy(), graph["columns"]
"""
_PROGRAMS = {
    "scipy min_weight_full_bipartite_matching": _READ
    + """
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
# An arc of similarity 0 would be no arc: costs begin at 1.
matrix = csr_array((3 - similarity, column, start), shape=(len(start) - 1, size))
before = time.perf_counter()
rows, columns = min_weight_full_bipartite_matching(matrix)
ms = (time.perf_counter() - before) * 1e3
print(json.dumps({"ms": round(ms), "value": float(3 * len(rows) - matrix[rows, columns].sum())}))
""",
    "lapx lapmod": _READ
    + """
import lap, numpy as np
before = time.perf_counter()
cost, columns, _ = lap.lapmod(size, 3 - similarity, start.astype(np.int32), column)
ms = (time.perf_counter() - before) * 1e3
print(json.dumps({"ms": round(ms), "value": float(3 * size - cost)}))
""",
}


def sparse_rivals(graph: Graph) -> list[dict[str, Any]]:
    """Return the value and time of each solver on a graph of saefast's."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.pt"
        torch.save(graph._asdict(), file)
        for rival, program in _PROGRAMS.items():
            row: dict[str, Any] = {"rival": rival, "mode": "solver alone, the same arcs"}
            try:
                done = subprocess.run(
                    [sys.executable, "-c", program, str(file)],
                    capture_output=True,
                    text=True,
                    timeout=_TIME_LIMIT,
                    check=True,
                )
                rows.append(row | json.loads(done.stdout))
            except subprocess.TimeoutExpired:
                rows.append(row | {"ms": None, "note": f"stopped after {_TIME_LIMIT} s"})
            except subprocess.CalledProcessError as error:
                rows.append(row | {"ms": None, "note": error.stderr.strip().splitlines()[-1]})
    return rows
