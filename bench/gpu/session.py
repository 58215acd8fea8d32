"""gpu: correctness, determinism and times on an NVIDIA GPU, beside floors and rivals.

`python -m bench gpu --json FILE [PARTS...]` on a machine with a GPU; bench/on_gpu.sh does the same
on a machine without installed packages. Each part runs in separate processes. The files gpu.json,
summary.txt and log.tgz are written again after every part and every few seconds, since such
machines may be taken away. This process imports no torch.
"""

import argparse
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.gpu.lanes import Row, run_lanes
from bench.gpu.needs import Need, missing, refusal
from bench.gpu.parts import DEFAULT, KINDS, Part, part
from bench.gpu.summary import failed, line_of, summary, with_ratios

_RESERVE = 8.0
"""Seconds at the end in which nothing is started."""
_EVERY = 10.0
"""Seconds after which the files are written again."""
_TOLD = 15
"""Number of failures of a part that are printed while it runs; all are in gpu.json."""
_LOG_BYTES = 1 << 20
"""Bytes of each worker's output that are kept."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; return 0 if all were run and nothing failed."""
    options = _parser().parse_args(arguments)
    try:
        for text in options.parts:
            part(text, {})
    except ValueError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()):
        print("bench.gpu needs an NVIDIA GPU; this machine has no NVIDIA driver", file=sys.stderr)
        return 1
    options.commit = options.commit or record.commit()
    if options.commit == "unknown":
        print("bench.gpu: git knows no commit here; name it by --commit HASH", file=sys.stderr)
        return 2
    lacking = {text: needs for text in options.parts if (needs := missing(text))}
    if lacking and not options.leave_out:
        print(f"bench.gpu: {refusal(lacking)}", file=sys.stderr)
        return 2
    # On SIGTERM, end the workers and write the files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        session = Session(options, Path(folder))
        try:
            session.leave_out(lacking)
            parts = [text for text in options.parts if text not in lacking]
            for number, text in enumerate(parts):
                session.run(text, parts[number + 1 :])
            session.result["complete"] = session.whole
        finally:
            session.write()
    print(summary(session.result), flush=True)
    return int(bool(session.result["failures"]) or not session.whole)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        default=list(DEFAULT),
        metavar="PARTS",
        help=f"of {', '.join(KINDS)}; times:SHAPE with a shape's name or d,m,k,n, or "
        f"times:matching[:NAME[:RIVAL]] (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for all parts")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT", "build/gpu")),
        help="folder of gpu.json, summary.txt and log.tgz (default: $OUT or build/gpu)",
    )
    parser.add_argument("--json", type=Path, help="additional path for gpu.json")
    parser.add_argument("--commit", help="commit of a copy without .git, which must name it")
    parser.add_argument(
        "--leave-out", action="store_true", help="leave out parts whose packages are missing"
    )
    return parser


class Session:
    """Run of several parts, one after another, and all their results."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._out, self._json, self._folder = options.out, options.json, folder
        self._begin = time.monotonic()
        self._budget: float = options.budget
        self._written = self._begin
        self._unwritten = False
        self.whole = True
        self.result: dict[str, Any] = {
            "machine": {},
            "commit": options.commit,
            "complete": False,
            "parts": [],
            "failures": [],
            "rows": [],
        }

    def leave_out(self, lacking: Mapping[str, Sequence[Need]]) -> None:
        """Record the parts that are left out, and what each lacks."""
        for text, needs in lacking.items():
            status = f"left out: lacks {', '.join(need.name for need in needs)}"
            print(f"{text}: {status}", flush=True)
            self.result["parts"].append(
                {"part": text, "status": status, "seconds": 0.0, "failures": 0}
            )

    def run(self, text: str, later: list[str]) -> None:
        """Run one part within the remaining budget, reserving the least time of later ones."""
        one = part(text, self.result)
        left = self._budget - _RESERVE - (time.monotonic() - self._begin)
        seconds = min(left - sum(part(other, {}).least for other in later), one.limits.part)
        seconds = max(seconds, min(one.least, left))
        begin = time.monotonic()
        if seconds < one.least:
            status = f"skipped: {left:.0f} s are left, it needs {one.least:.0f}"
        else:
            limits = one.limits._replace(part=seconds)
            status = run_lanes(one.lanes, self._folder, limits, lambda *new: self._take(one, *new))
        self.whole = self.whole and status == "complete"
        took = round(time.monotonic() - begin, 1)
        failures = [row for row in self.result["failures"] if row["part"] == one.name]
        self.result["parts"].append(
            {"part": one.name, "status": status, "seconds": took, "failures": len(failures)}
        )
        print(f"{one.name}: {status}, {len(failures)} failures, {took:.0f} s", flush=True)
        self.write()

    def _take(self, one: Part, rows: list[Row], facts: Row) -> None:
        self.result.update(facts)
        failures = self.result["failures"]
        for row in rows:
            if failed(row):
                failures.append({"part": one.name, **row})
                if sum(other["part"] == one.name for other in failures) <= _TOLD:
                    print("FAIL", line_of(failures[-1]), flush=True)
            # A row of a contest that failed has no times and is left out of the table.
            if not ("raised" in row and one.table == "rows"):
                self.result.setdefault(one.table, []).append(row)
        self._unwritten = self._unwritten or bool(rows or facts)
        if self._unwritten and time.monotonic() - self._written > _EVERY:
            self.write()

    def write(self) -> None:
        """Write all files with the results so far."""
        self._written, self._unwritten = time.monotonic(), False
        shown = {**self.result, "rows": with_ratios(self.result["rows"])}
        record.write(self._out / "gpu.json", shown)
        if self._json:
            record.write(self._json, shown)
        (self._out / "summary.txt").write_text(summary(self.result) + "\n")
        self._pack(self._out / "log.tgz")

    def _pack(self, file: Path) -> None:
        """Archive the last output of each worker."""
        temporary = file.with_suffix(".part")
        with tarfile.open(temporary, "w:gz") as archive:
            for log in sorted(self._folder.iterdir()):
                with log.open("rb") as stream:
                    size = log.stat().st_size
                    kept = min(size, _LOG_BYTES)
                    stream.seek(size - kept)
                    entry = tarfile.TarInfo(log.name)
                    entry.size = kept
                    archive.addfile(entry, stream)
        temporary.replace(file)
