"""Parts of a GPU session: lanes of each, time limits, and tables of its rows."""

import json
import math
import sys
from typing import Any, NamedTuple

from bench.gpu.lanes import Lane, Limits
from bench.matching_shapes import check_matching
from bench.shapes import gpu_shape

CHECKED = (
    "16,64,1,1",
    "40,127,5,33",
    "63,128,128,7",
    "100,1025,32,70",
    "257,4095,17,129",
    "768,4096,64,255",
    "1001,16385,100,31",
)
"""Shapes of the checks.

m is one below, at or one above a power of two, widths fill no vector, and k is 1 or m.
"""
PROFILED = ("C2", "C1")
MATCHING = "matching"
DEFAULT = ("smoke", "checks", "profile", "times:C2", "times:C1", "times:mid", "times:decode")


class Part(NamedTuple):
    """Part of a session: its lanes, and the seconds that it needs."""

    name: str
    table: str
    """name of its rows' table in gpu.json"""
    least: float
    """minimum seconds; with less time the part is skipped"""
    limits: Limits
    lanes: tuple[Lane, ...]


KINDS: dict[str, tuple[str, float, Limits]] = {
    "install": ("install", 5, Limits(300, 290)),
    "smoke": ("smoke", 20, Limits(180, 90)),
    "checks": ("checks", 30, Limits(420, 240, together=8)),
    "profile": ("kernels", 20, Limits(180, 120)),
    "memcheck": ("sanitizer", 30, Limits(300, 150)),
    "tiles": ("tiles", 30, Limits(240, 90)),
    "times": ("rows", 30, Limits(600, 180)),
    "ncu": ("ncu", 20, Limits(180, 60)),
    "peers": ("rows", 30, Limits(400, 180)),
    "decodes": ("rows", 20, Limits(240, 90)),
    "end_to_end": ("rows", 40, Limits(240, 150)),
}
"""Table, least seconds and limits by the name before the colon."""


def part(text: str, facts: dict[str, Any]) -> Part:
    """Return the part that a word of the command line names.

    Args:
        text: name in `KINDS`, possibly with an argument: times:C2, times:768,32768,32,8192,
            times:matching, times:matching:nearest, times:matching:nearest:torch; checks, peers and
            decodes take shapes, too.
        facts: facts found by earlier parts, such as the ceilings of the GPU.
    """
    kind, _, argument = text.partition(":")
    if kind not in KINDS or (kind == "times" and not argument):
        raise ValueError(
            f"a part is one of {', '.join(KINDS).replace('times', 'times:SHAPE')}; got {text!r}"
        )
    if (matching := _matching(argument)) is not None:
        check_matching(matching)
    elif argument:
        gpu_shape(argument)
    table, least, limits = KINDS[kind]
    return Part(text, table, least, limits, tuple(_lanes(kind, argument, facts)))


def _lanes(kind: str, argument: str, facts: dict[str, Any]) -> list[Lane]:
    def lane(subject: str, argument: str = "", **environment: str) -> Lane:
        command = [sys.executable, "-m", "bench.gpu.worker", subject, argument]
        known = {name: facts[name] for name in ("ceilings",) if name in facts}
        return Lane(
            f"{subject} {argument}".strip(),
            [*command, "--facts", json.dumps(known)],
            environment,
        )

    if kind == "smoke":
        return [lane(kind, CUDA_LAUNCH_BLOCKING="1")]
    if kind == "checks":
        # The longest items first.
        shapes = [argument] if argument else sorted(CHECKED, key=_work, reverse=True)
        return [*(lane("checks", shape) for shape in shapes), lane("graphs")]
    if kind == "times" and (matching := _matching(argument)) is not None:
        return [lane("matching", matching)]
    if kind in ("profile", "tiles"):
        return [lane(kind, shape) for shape in ([argument] if argument else PROFILED)]
    return [lane(kind, argument)]


def _matching(argument: str) -> str | None:
    """Return the matchings that an argument names, "" for all; None if it is no matching."""
    first, _, rest = argument.partition(":")
    return rest if first == MATCHING else None


def _work(shape: str) -> float:
    return math.prod(gpu_shape(shape))
