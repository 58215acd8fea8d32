"""gpu: what an NVIDIA GPU says: correctness and determinism, then times against floors and rivals.

`python -m bench gpu --json FILE` on a machine with a GPU. Checks come first, and a contestant is
timed only if it agrees. The file is written again after every part: machines are taken away.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.cases import Shape
from bench.gpu_checks import SHAPES as CHECKED
from bench.gpu_checks import Finding, findings, graphs_and_far_addresses
from bench.gpu_contests import CASES, RIVALS, Contest, installed
from bench.gpu_times import Timer, measured_ceilings, with_ratios

TIMED = (
    Shape(768, 32768, 32, 8192),
    Shape(2304, 65536, 64, 8192),
    Shape(4096, 131072, 64, 8192),
)
DECODED = Shape(2304, 65536, 32, 8192)
"""Where flexsae publishes 5.58 ms for a decode with its gradients."""
PARTS = ("checks", *CASES, "sanitizer")
_CHECKOUT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Check, then time, then write."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu needs an NVIDIA GPU; torch sees none", file=sys.stderr)
        return 1
    shapes = [Shape(*map(int, text.split(","))) for text in options.shape]
    result: dict[str, Any] = {
        "machine": record.gpu(),
        "commit": options.commit or record.commit(),
        "complete": False,
    }

    def keep(**parts: Any) -> None:
        result.update(parts)
        if options.json:
            record.write(options.json, result)

    failed = 0
    if "checks" in options.parts:
        rows = checked(shapes or CHECKED)
        failed = sum(not row["holds"] for row in rows)
        keep(checks=rows)
    cases = [case for case in CASES if case in options.parts]
    if cases:
        timed(cases, shapes, options.rounds, keep)
    if "sanitizer" in options.parts:
        keep(sanitizer=sanitized())
    keep(complete=True)
    print(f"{failed} checks failed", flush=True)
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write everything to")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each (default 20)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument(
        "--shape", nargs="+", default=[], help="these only, each as d,m,k,n, for checks and times"
    )
    parser.add_argument("--commit", help="of a copy without .git")
    return parser


def checked(shapes: Iterable[Shape]) -> list[dict[str, Any]]:
    """Every finding; a check that raises is one that fails."""
    rows = []
    for shape in shapes:
        rows += _rows_of(findings(shape, "cuda"), f"shape {tuple(shape)}")
    rows += _rows_of(graphs_and_far_addresses(), "graphs and far addresses")
    return rows


def _rows_of(found: Iterable[Finding], where: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        for finding in found:
            rows.append(finding.row())
            print("ok  " if finding.holds else "FAIL", *finding, flush=True)
    # Whatever stops one check must not keep the others from being made.
    except Exception as error:
        rows.append({"check": where, "holds": False, "raised": repr(error)})
        print("FAIL", where, repr(error), flush=True)
    return rows


def timed(cases: list[str], shapes: list[Shape], rounds: int, keep: Any) -> None:
    """The ceilings, and the contests of all shapes."""
    ceilings = measured_ceilings()
    print(ceilings, flush=True)
    timer = Timer(ceilings, rounds)
    timer.skipped += [f"{name}: not installed" for name in RIVALS if name not in installed()]
    start = time.perf_counter()
    for peers, shape in product((False, True), shapes or (*TIMED, DECODED)):
        if peers and not installed():
            break
        contest = Contest(shape)
        for case in ["decode"] if shape == DECODED and not shapes else cases:
            timer.race(shape, contest.unit, contest.contestants(case, peers=peers))
            keep(
                ceilings=ceilings._asdict(),
                rows=with_ratios(timer.rows),
                skipped=timer.skipped,
                seconds=round(time.perf_counter() - start),
            )
        del contest
        torch.compiler.reset()


def sanitized() -> dict[str, str]:
    """What compute-sanitizer says of the checks at the smallest shapes, if it is there."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    said = {}
    for kind in ("memcheck", "racecheck", "synccheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9"]
        command += [sys.executable, "-m", "bench.gpu", "--parts", "checks"]
        command += ["--shape", "40,127,5,33", "100,1025,32,7"]
        try:
            result = subprocess.run(
                command,
                cwd=_CHECKOUT,
                # With torch's own cache an access beyond a tensor may still be within a block.
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                capture_output=True,
                text=True,
                timeout=180,
            )
        except subprocess.TimeoutExpired:
            said[kind] = "not done after 180 s"
        else:
            said[kind] = "clean" if result.returncode == 0 else result.stdout[-3000:]
        print(kind, said[kind], flush=True)
    return said


if __name__ == "__main__":
    sys.exit(main())
