"""Worker process of a GPU session: works through the items of a subject and writes rows.

`python -m bench.gpu.worker SUBJECT [ARGUMENT] --rows FILE` is started by bench/gpu/lanes.py.
"""

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.lanes import POISONED

SUBJECTS = {
    "install": "install",
    "smoke": "smoke",
    "checks": "checks",
    "graphs": "graph_checks",
    "profile": "profile",
    "step": "one_step",
    "tiles": "tiles",
    "times": "contests",
    "peers": "peers",
    "decodes": "decode_rivals",
    "end_to_end": "end_to_end",
    "matching": "matching",
    "memcheck": "sanitizer",
    "ncu": "ncu",
}
"""Modules of bench/ by subject; their `items(argument, facts)` yields a worker's items."""
WITHOUT_TORCH = ("install", "memcheck", "ncu")
_STICKY = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "an illegal address",
    "launch timed out",
)
_LINE = 300


class Item(NamedTuple):
    """Task of a worker; its failure does not affect other items."""

    name: str
    run: Callable[[], Iterable[dict[str, Any]]]
    """function that yields rows"""
    describe: dict[str, Any] = {}  # noqa: RUF012
    """further entries of the row of a failure"""
    is_fact: bool = False
    """whether it yields facts for the whole session instead of rows"""


def main(arguments: list[str] | None = None) -> int:
    """Work through the items after the first `--skip`."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.worker", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="items that were begun before")
    parser.add_argument("--facts", type=json.loads, default={}, help="JSON, such as the ceilings")
    options = parser.parse_args(arguments)
    with options.rows.open("a") as file:

        def write(**message: Any) -> None:
            file.write(json.dumps(message) + "\n")
            file.flush()

        file.write("\n")  # ends a line that a killed process may have begun
        if options.subject not in WITHOUT_TORCH:
            facts = _machine()
            if options.skip == 0:
                write(fact=facts)
        module = importlib.import_module(f"bench.gpu.{SUBJECTS[options.subject]}")
        return work(module.items(options.argument, options.facts), options.skip, write)


def _machine() -> dict[str, Any]:
    """Return the GPU, its driver and the versions; exit if there is no GPU."""
    import torch

    from bench import record

    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs an NVIDIA GPU; torch sees none")
    return {"machine": record.gpu()}


def work(items: Iterator[Item], skip: int, write: Callable[..., None]) -> int:
    """Do all items but the first `skip`; return the exit status."""
    for number, item in enumerate(items):
        if number < skip:
            continue
        write(begin=item.name)
        try:
            for row in item.run():
                write(**{"fact" if item.is_fact else "row": row})
        # An error of one item, of any kind, must not prevent the next ones.
        except Exception as error:
            traceback.print_exc()
            raised = error_line(error)
            write(row={"item": item.name, **item.describe, "raised": raised})
            write(end=item.name)
            if is_sticky(error):
                return POISONED
        else:
            write(end=item.name)
    write(done=True)
    return 0


def error_line(error: Exception) -> str:
    """Return the first line of an error, and where it was raised."""
    first = (str(error).strip() or "no message").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first[: _LINE - 60]}{where}"


def is_sticky(error: Exception) -> bool:
    """Return whether the error makes every further CUDA call of this process fail."""
    if any(message in str(error).lower() for message in _STICKY):
        return True
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
