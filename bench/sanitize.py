"""sanitize: build the C++ with sanitizers, test the ops, and plant faults that must be reported.

GCC's AddressSanitizer with UndefinedBehaviorSanitizer, and ThreadSanitizer, each in a build of its
own below build/sanitize. Needs CMake, Ninja and pybind11. Python is not instrumented, so the
runtime of the sanitizer is loaded before it.
"""

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from bench import record
from bench.trust import replace_rows

_CHECKOUT = Path(__file__).resolve().parent.parent
_FUZZ = "tests/trust/test_op_fuzz.py"
_CHECKSUMS = "tests/disk/test_checksums.py"
_OPS = ("tests/ops", "tests/match/test_match.py", _CHECKSUMS)
_THREADS = ("1", "2", "4")

# Files of tests/ops that call no C++.
_WITHOUT_NATIVE = ("cuda_compile", "gpu_screens", "kernel_ranges", "list_length", "order", "tiles")

# torch unlocks a mutex that it has not locked, when Python ends. Its loops wait for each other in
# libgomp, which ThreadSanitizer does not see, so copies and locks of torch itself are left out.
# Threads of Arrow, which is not instrumented either, call no code of this package; the names match
# all of its libraries.
_SUPPRESSED = (
    "mutex:capsule_dealloc\ncalled_from_lib:libtorch_cpu.so\ncalled_from_lib:libtorch_python.so\n"
    "race:libarrow\nrace:libparquet\n"
)


class Sanitizer(NamedTuple):
    """A build, and the environment in which Python can load it."""

    name: str
    flags: str
    """value of SAEFAST_SANITIZE"""
    libraries: tuple[str, ...]
    """libraries that are loaded before Python"""
    options: Mapping[str, str]
    tests: str
    """expression of pytest that chooses tests"""


class Fault(NamedTuple):
    """A change of one line, and the report that it must cause."""

    sanitizer: str
    file: str
    line: str
    planted: str
    report: str


_SANITIZERS = (
    Sanitizer(
        "address",
        "address,undefined",
        ("libasan.so", "libstdc++.so"),
        # Python itself does not free everything.
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        "",
    ),
    Sanitizer(
        "thread",
        "thread",
        ("libtsan.so",),
        {"TSAN_OPTIONS": "halt_on_error=1 suppressions={suppressions}"},
        # Large tensors and what is recorded of their accesses need more than 20 GB.
        "not beyond_32_bit_indices",
    ),
)
FAULTS = (
    Fault(
        "address",
        "csrc/sparse_decode.cpp",
        "space.weights.resize(k);",
        "space.weights.resize(std::max<int64_t>(k - 1, 1));",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    Fault(
        "address",
        "csrc/xxh64.cpp",
        "std::memcpy(&word, place, sizeof word);",
        "word = *reinterpret_cast<const Word*>(place);",
        "runtime error: load of misaligned address",
    ),
    Fault(
        "thread",
        "csrc/sparse_decode.cpp",
        "decode_row(kernels, args, row, spaces[worker]);",
        "decode_row(kernels, args, row, spaces[0]);",
        "ThreadSanitizer: data race",
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Build, run and plant; return 0 if only the planted faults were reported."""
    parser = argparse.ArgumentParser(prog="python -m bench sanitize", description=main.__doc__)
    parser.add_argument("--json", type=Path, help="file whose rows are replaced or added")
    parser.add_argument("--folder", type=Path, default=_CHECKOUT / "build" / "sanitize")
    parser.add_argument("--only", choices=[each.name for each in _SANITIZERS], help="default: all")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only random operands, whose instruction set and threads are random, too",
    )
    chosen = parser.parse_args(arguments)
    for sanitizer in _SANITIZERS:
        if chosen.only not in (None, sanitizer.name):
            continue
        begin = time.perf_counter()
        build = _Build(sanitizer, chosen.folder / sanitizer.name)
        build.compile()
        outcomes = {"clean": build.run_all(quick=chosen.quick)}
        faults = [fault for fault in FAULTS if fault.sanitizer == sanitizer.name]
        for fault in faults:
            build.plant(fault)
        outcomes["planted fault reported"] = len(faults)
        row = {
            "campaign": f"sanitizers: {sanitizer.flags}{', random operands' * chosen.quick}",
            "cases": sum(outcomes.values()),
            "outcomes": outcomes,
            "seconds": round(time.perf_counter() - begin, 1),
            "commit": record.commit(),
        }
        print(row, flush=True)
        if chosen.json:
            replace_rows(chosen.json, [row])
    return 0


def passed_tests(output: str) -> int:
    """Return the number of passed tests that the summary of pytest names."""
    summary = re.search(r"(\d+) passed\b.* in [\d.]+s", output)
    if summary is None:
        raise ValueError(f"pytest printed no summary of passed tests:\n{output[-1000:]}")
    return int(summary[1])


class _Build:
    """A build of a copy of the sources, in which a line can be changed."""

    def __init__(self, sanitizer: Sanitizer, folder: Path) -> None:
        self._sanitizer, self._folder = sanitizer, folder
        self._source, self._site = folder / "source", folder / "site" / "saefast"

    def compile(self) -> None:
        """Copy the sources that have changed, and compile them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in (_CHECKOUT / "CMakeLists.txt", *sorted((_CHECKOUT / "csrc").rglob("*"))):
            copy = self._source / path.relative_to(_CHECKOUT)
            if path.is_file() and (not copy.exists() or copy.read_bytes() != path.read_bytes()):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        self._run(
            *("cmake", "-G", "Ninja", "-S", self._source, "-B", self._folder / "build"),
            *("-DSKBUILD=1", "-DSKBUILD_PROJECT_VERSION=0", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"),
            *("-DPYBIND11_FINDPYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-Dpybind11_DIR={self._output(sys.executable, '-m', 'pybind11', '--cmakedir')}",
            f"-DSAEFAST_SANITIZE={self._sanitizer.flags}",
        )
        self._link()

    def _link(self) -> None:
        """Compile, and make a package of the module and links to the Python files."""
        self._run("cmake", "--build", self._folder / "build")
        shutil.rmtree(self._site, ignore_errors=True)
        self._site.mkdir(parents=True)
        for path in (*(_CHECKOUT / "saefast").iterdir(), _CHECKOUT / "kernels"):
            if path.name != "__pycache__":
                (self._site / path.name).symlink_to(path)
        for module in (self._folder / "build").glob("_native*.so"):
            shutil.copy(module, self._site)

    def run_all(self, *, quick: bool) -> int:
        """Run the tests at every instruction set and number of threads; return how many passed."""
        passed = self._passed((_FUZZ,))  # draws instruction sets and numbers of threads, too
        if quick:
            return passed
        code = "from saefast.ops.cpu import native; print(*native.usable_levels())"
        levels = self._output(sys.executable, "-P", "-c", code, **self._environment()).split()
        left_out = (f"--ignore=tests/ops/test_{name}.py" for name in _WITHOUT_NATIVE)
        tests = (*_OPS, *left_out)

        def passed_at(place: tuple[str, str]) -> int:
            level, threads = place
            return self._passed(tests, SAEFAST_ISA=level, OMP_NUM_THREADS=threads)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return passed + sum(pool.map(passed_at, itertools.product(levels, _THREADS)))

    def plant(self, fault: Fault) -> None:
        """Change a line, expect the report of the sanitizer, and restore the line."""
        file = self._source / fault.file
        whole = file.read_text()
        if whole.count(fault.line) != 1:
            raise RuntimeError(f"{fault.file} must hold the line {fault.line!r} once")
        try:
            file.write_text(whole.replace(fault.line, fault.planted))
            self._link()
            ended = self._pytest((_FUZZ, _CHECKSUMS))
            if ended.returncode == 0 or fault.report not in ended.stdout:
                raise RuntimeError(f"{fault.planted!r} was not reported:\n{ended.stdout[-3000:]}")
        finally:
            file.write_text(whole)
            self._link()
        print(f"{fault.report}: reported for {fault.planted}", flush=True)

    def _passed(self, tests: Sequence[str], **environment: str) -> int:
        ended = self._pytest(tests, **environment)
        print(*environment.values(), ended.stdout.strip().rpartition("\n")[2], flush=True)
        if ended.returncode:
            status = f"pytest ended with status {ended.returncode}"
            raise RuntimeError(f"{status}:\n{ended.stdout[-10_000:]}")
        return passed_tests(ended.stdout)

    def _pytest(
        self, tests: Sequence[str], **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run tests in this build, with variables of the environment."""
        command = (sys.executable, "-m", "pytest", "-q", "-x", "--capture=no", "-m", "not alone")
        chosen = ("-k", self._sanitizer.tests)
        return subprocess.run(
            [*command, *chosen, "-p", "no:cacheprovider", "--hypothesis-profile=few", *tests],
            cwd=_CHECKOUT,
            env={**os.environ, **self._environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        suppressions = self._folder / "suppressions"
        suppressions.write_text(_SUPPRESSED)
        options = {
            name: value.format(suppressions=suppressions)
            for name, value in self._sanitizer.options.items()
        }
        names = (f"-print-file-name={library}" for library in self._sanitizer.libraries)
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        return {
            **options,
            "OMP_WAIT_POLICY": "passive",  # cores are fewer than threads
            "LD_PRELOAD": " ".join(self._output("g++", name) for name in names),
            "PYTHONPATH": os.pathsep.join([str(self._site.parent), *others]),
        }

    @staticmethod
    def _run(*command: Any) -> None:
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)

    @staticmethod
    def _output(*command: str, **environment: str) -> str:
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        ).stdout.strip()
