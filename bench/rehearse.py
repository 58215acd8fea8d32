"""rehearse: what a GPU would be asked to run, recorded and compiled without a GPU.

`python -m bench.rehearse` runs every default training, every check and every contest of
`bench gpu` on pretended GPUs, records each kernel as it would be launched, compiles it for each
architecture, and fails where one spills, does not fit, or may read what it has not yet written.

`--cache DIR` keeps what is compiled. A machine with the same version of Triton, without a network
or a compiler's time to spend, uses it: copy DIR there, run `python -m bench.rehearse --cache DIR
--relocate`, and set TRITON_CACHE_DIR=DIR.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
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
    """Record, compile, print; 1 if something is wrong."""
    options = _parser().parse_args(arguments)
    if options.relocate:
        print(f"{relocate(options.cache)} kernels in {options.cache}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TRITON_CACHE_DIR"] = str(options.cache or temporary)
        # Forked, not spawned: the checkout is not on Python's path, see bench/__init__.py.
        pool = ProcessPoolExecutor(options.processes, mp_context=get_context("fork"))
        with pool:
            rows = rehearsed(pool, options.architectures, small=options.small)
    for row in rows:
        print(table.line(row))
    if options.json:
        table.write(options.json, triton.__version__, rows)
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
    parser.add_argument("--small", action="store_true", help="one training and one encode only")
    parser.add_argument("--cache", type=Path, help="folder to keep what is compiled in")
    parser.add_argument(
        "--relocate", action="store_true", help="only make a copied --cache usable where it is"
    )
    parser.add_argument("--json", type=Path, help="file to write this version's table into")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores")
    return parser


def rehearsed(pool: Executor, architectures: Sequence[int], *, small: bool) -> list[table.Row]:
    """The rows of every architecture, compiled side by side."""
    start = time.perf_counter()
    recorded = pool.map(partial(recorded_on, small=small), architectures)
    launches = [
        (launched, architecture, programs)
        for architecture, counts in zip(architectures, recorded, strict=True)
        for launched, programs in counts.items()
    ]
    _log(f"{len(launches)} kernels recorded", start)
    results = pool.map(_compiled_or_error, *zip(*[one[:2] for one in launches], strict=True))
    rows = []
    for launch, result in zip(launches, results, strict=True):
        rows.append(table.Row(*launch, result))
        for fault in table.faults(rows[-1:]):
            _log(fault, start)
        if len(rows) % 100 == 0:
            _log(f"{len(rows)} compiled", start)
    return rows


def recorded_on(architecture: int, *, small: bool) -> Counter[Launched]:
    """All that the programs launch on that architecture, and how many of them launch it."""
    counts: Counter[Launched] = Counter()
    for program in small_programs() if small else all_programs():
        with on(GPUS[architecture]), recording() as launched:
            program.run()
        counts.update(launched.keys())
    return counts


def _compiled_or_error(launched: Launched, architecture: int) -> Compiled | str:
    try:
        return compiled(launched, architecture)
    # A compiler may fail in any way: what it says is a row of the table, and the next is compiled.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def _log(text: str, start: float) -> None:
    print(f"{text} after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
