"""compute-sanitizer on the checks at small shapes.

memcheck covers every kernel. racecheck and synccheck examine shared memory only, and are known to
report false races in code that Triton generates (its reductions, wgmma): they are run on the CUDA
C++ kernels only, which are selected by name. Captured graphs and tensors beyond 2^31 elements are
left out: a graph cannot be captured without torch's caching allocator, and with it an access beyond
a tensor may still be within an allocation.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu.lanes import POISONED
from bench.gpu.worker import Item

SHAPES = ("40,127,5,33", "100,1025,32,7")
CUDA_KERNELS = ("keep_best_rows", "choose_rows")
"""Kernels of csrc/cuda/select.cu."""
_CHECKOUT = Path(__file__).resolve().parents[2]
_ERROR = 9
_KEPT = 2000


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield memcheck at every shape, then the tools for the CUDA C++ kernels."""
    for shape in SHAPES:
        yield Item(f"memcheck {shape}", partial(_checked, "memcheck", shape))
    for tool in ("racecheck", "synccheck"):
        for kernel in CUDA_KERNELS:
            yield Item(f"{tool} {kernel}", partial(_checked, tool, SHAPES[1], kernel))


def _checked(tool: str, shape: str, kernel: str | None = None) -> Iterable[dict[str, Any]]:
    sanitizer = shutil.which("compute-sanitizer")
    row: dict[str, Any] = {"tool": tool, "shape": shape, "kernel": kernel or "all"}
    if sanitizer is None:
        yield {**row, "skipped": "compute-sanitizer is not installed"}
    elif kernel is not None and importlib.util.find_spec("saefast._cuda") is None:
        yield {**row, "skipped": "saefast was built without CUDA C++ kernels"}
    else:
        yield {**row, **_verdict([sanitizer, "--tool", tool], shape, kernel)}


def _verdict(command: list[str], shape: str, kernel: str | None) -> dict[str, Any]:
    """Return "clean", or the tool's report; checks that fail without a report are ignored here."""
    command = [*command, "--error-exitcode", str(_ERROR), "--target-processes", "all"]
    if kernel is not None:
        command += ["--kernel-regex", f"kns={kernel}"]
    with tempfile.TemporaryDirectory() as folder:
        command += [sys.executable, "-m", "bench.gpu.worker", "checks", shape]
        command += ["--rows", str(Path(folder) / "rows.jsonl")]
        done = subprocess.run(
            command,
            cwd=_CHECKOUT,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    print(done.stdout, flush=True)
    if done.returncode == 0:
        return {"verdict": "clean"}
    reported = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    said = "\n".join(reported) or done.stdout[-_KEPT:]
    first = next((line for line in reported if _is_finding(line)), said[-200:])
    what = {_ERROR: "reported", POISONED: "a CUDA error"}.get(
        done.returncode, f"exit status {done.returncode}"
    )
    return {"raised": f"{what}: {first.strip('= ')}", "report": said[:_KEPT]}


def _is_finding(line: str) -> bool:
    return any(word in line for word in ("Invalid", "hazard", "Error", "Barrier", "Program hit"))
