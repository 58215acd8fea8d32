"""Nsight Compute on the kernels that dominate a step: memory, L2 cache, tensor cores."""

import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu.worker import Item

KERNELS = ("hot_groups", "update_columns", "score_candidates", "residual_rows")
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": "tensor_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
}
_CHECKOUT = Path(__file__).resolve().parents[2]
_LAUNCHES = 4


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield one kernel after another, in a default step at the shape `argument`, or C2."""
    for kernel in KERNELS:
        yield Item(f"ncu {kernel}", partial(_measured, kernel, argument or "C2"))


def _measured(kernel: str, shape: str) -> Iterable[dict[str, Any]]:
    tool = shutil.which("ncu")
    if tool is None:
        yield {"kernel": kernel, "shape": shape, "skipped": "ncu is not installed"}
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = [tool, "--clock-control", "none", "--target-processes", "all", "--csv"]
        command += ["--page", "raw", "--print-units", "base", "--log-file", str(log)]
        command += ["--kernel-name", f"regex:^{kernel}", "--launch-count", str(_LAUNCHES)]
        command += ["--metrics", ",".join(METRICS)]
        command += [sys.executable, "-m", "bench.gpu.worker", "step", shape]
        command += ["--rows", str(Path(folder) / "rows.jsonl")]
        done = subprocess.run(
            command,
            cwd=_CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        report = log.read_text() if log.exists() else ""
    print(done.stdout, report, sep="\n", flush=True)
    rows = parsed(report)
    if not rows:
        said = [line for line in (report + done.stdout).splitlines() if line.startswith("==")]
        raise RuntimeError(f"no launch was measured: {(said or ['ncu said nothing'])[-1]}")
    for row in rows:
        yield {"kernel": kernel, "shape": shape, **row}


def parsed(report: str) -> list[dict[str, float]]:
    """Return one row of metrics for every launch from the CSV output of ncu."""
    lines = [line for line in report.splitlines() if line.startswith('"')]
    rows = []
    for line in csv.DictReader(lines):
        values = {name: _number(line.get(metric, "")) for metric, name in METRICS.items()}
        # The line below the header holds units.
        if found := {name: value for name, value in values.items() if value is not None}:
            rows.append(found)
    return rows


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
