"""rehearse: kernels that a GPU would run, recorded and compiled without a GPU.

`python -m bench.rehearse` runs every default training, every check and every contest of `bench gpu`
on pretended GPUs, records each kernel as it would be launched, compiles it for each architecture,
and fails if one spills, does not fit, or may read memory that it has not yet written.

`--json FILE` is written whenever the kernels of one architecture are compiled. To continue after an
interruption, repeat the command with the same `--cache DIR`, which keeps the compiled kernels, and
with the `--architectures` that FILE lacks; its entries of other architectures stay. With
`--kernels` only entries of these kernels are replaced, by all their launches in all programs:
enough after a change of their code, but not of functions that other kernels call.

`--cache` serves GPUs, too. A machine with the same version of Triton, but without a network or time
to compile, can use it: copy DIR there, run `python -m bench.rehearse --cache DIR --relocate`, and
set TRITON_CACHE_DIR=DIR.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import triton

from bench.rehearsal import table
from bench.rehearsal.cache import relocate
from bench.rehearsal.compiling import Compiled, compiled
from bench.rehearsal.pretended_gpu import GPUS, on
from bench.rehearsal.programs import all_programs, small_programs
from bench.rehearsal.recording import Launched, recording


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, compile and print; return 1 if there are faults."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.relocate:
        print(f"{relocate(options.cache)} kernels in {options.cache}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TRITON_CACHE_DIR"] = str(options.cache or temporary)
        # Forked, not spawned: the checkout is not on Python's path, see bench/__init__.py.
        pool = ProcessPoolExecutor(options.processes, mp_context=get_context("fork"))
        with pool:
            rows = []
            of_architectures = rehearsed(
                pool, options.architectures, small=options.small, kernels=options.kernels
            )
            for architecture, some in of_architectures:
                if options.json:
                    table.write(
                        options.json, triton.__version__, [architecture], some, options.kernels
                    )
                rows += some
    for row in rows:
        print(table.line(row))
    faults = list(table.faults(rows))
    print(*faults, table.summary(rows), f"{len(faults)} faults", sep="\n", flush=True)
    return int(bool(faults))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rehearse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--architectures", nargs="+", type=int, choices=GPUS, default=list(GPUS), metavar="SM"
    )
    parser.add_argument(
        "--kernels", nargs="+", default=[], metavar="NAME", help="only of these names"
    )
    parser.add_argument("--small", action="store_true", help="one training and one encode only")
    parser.add_argument("--cache", type=Path, help="folder for compiled kernels")
    parser.add_argument(
        "--relocate", action="store_true", help="only adapt a copied --cache to its new place"
    )
    parser.add_argument("--json", type=Path, help="file to add this version's table to")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores")
    return parser


def rehearsed(
    pool: Executor, architectures: Sequence[int], *, small: bool, kernels: Sequence[str]
) -> Iterator[tuple[int, list[table.Row]]]:
    """Yield each architecture with its rows, as soon as all of them are compiled.

    `kernels` are the names of the kernels to compile; if empty, all are.
    """
    start = time.perf_counter()
    recorded = [
        {launched: n for launched, n in counts.items() if not kernels or launched.kernel in kernels}
        for counts in pool.map(partial(recorded_on, small=small), architectures)
    ]
    _log(f"{sum(map(len, recorded))} kernels recorded", start)
    results = [
        pool.map(partial(_compiled_or_error, architecture=architecture), counts)
        for architecture, counts in zip(architectures, recorded, strict=True)
    ]
    done = 0
    for architecture, counts, made in zip(architectures, recorded, results, strict=True):
        rows = []
        for (launched, programs), result in zip(counts.items(), made, strict=True):
            rows.append(table.Row(launched, architecture, programs, result))
            for fault in table.faults(rows[-1:]):
                _log(fault, start)
            done += 1
            if done % 100 == 0:
                _log(f"{done} compiled", start)
        yield architecture, rows


def recorded_on(architecture: int, *, small: bool) -> Counter[Launched]:
    """Return all launches on an architecture, with the number of programs of each."""
    counts: Counter[Launched] = Counter()
    for program in small_programs() if small else all_programs():
        with on(GPUS[architecture]), recording() as launched:
            program.run()
        counts.update(launched.keys())
    return counts


def _compiled_or_error(launched: Launched, architecture: int) -> Compiled | str:
    try:
        return compiled(launched, architecture)
    # A compiler may fail in any way: its message becomes a row, and the next kernel is compiled.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def _log(text: str, start: float) -> None:
    print(f"{text} after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
