"""Memory that a kernel both writes and reads, by the compiler's first representation of it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_VALUE = re.compile(r"%\w+")
_REGION = re.compile(r"\s*(?:(%\w+)(?::\d+)? = )?scf\.(?:for|if|while)\b")
_RESULT = re.compile(r"\s*(%\w+)(?::\d+)? = (\S+) (.*)")


class _Region(NamedTuple):
    """Loop or branch."""

    result: str
    """its result, several values under one name"""
    carried: list[str]
    """variables that a loop carries from one iteration to the next"""


def rereads(ttir: str) -> list[str]:
    """Return the pointer arguments of a kernel that reach both a load and a store.

    Every pointer is traced to the arguments that it was computed from: through arithmetic, through
    the variables that loops carry, and through the results of loops and branches. Several results
    of one loop count as one, so that too many may be named, but none is missed.
    """
    head = re.search(r"tt\.func public @\w+\((.*?)\) attributes", ttir, re.DOTALL)
    if head is None:
        raise ValueError(f"ttir must hold one public function, got {ttir[:200]!r}")
    lines = ttir[head.end() :].splitlines()
    sources: dict[str, set[str]] = defaultdict(set)
    for target, source in _flows(lines):
        sources[target].add(source)
    arguments = set(re.findall(r"(%\w+): (?:!tt\.ptr|!tt\.tensordesc)", head[1]))
    touched: dict[str, set[str]] = {"load": set(), "store": set()}
    for line in lines:
        for kind, address in re.findall(r"tt\.(load|store) (%\w+)", line):
            touched[kind] |= arguments & _reached(address, sources)
    return sorted(name.removeprefix("%") for name in touched["load"] & touched["store"])


def _reached(start: str, sources: dict[str, set[str]]) -> set[str]:
    """Return all values that `start` may be computed from, itself included."""
    seen, waiting = {start}, [start]
    while waiting:
        new = sources.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def _flows(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a value and one that it may be computed from, where pointers are passed on."""
    regions: list[_Region] = []
    passed: list[str] = []  # values that the condition of a `while` passes to its body
    for line in lines:
        opened = _REGION.match(line)
        if opened:
            starts = re.findall(r"(%\w+) = (%\w+)", line[opened.end() :])
            carried = [(to, start) for to, start in starts if to != opened[1]]
            regions.append(_Region(opened[1] or "", [to for to, _ in carried]))
            yield from carried
            yield from ((regions[-1].result, start) for _, start in carried)
        elif regions and re.match(r"\s*scf\.(yield|condition)", line):
            values = _VALUE.findall(line.split(" : ")[0])
            if "scf.condition" in line:
                passed = values = values[1:]
            else:
                yield from zip(regions[-1].carried, values, strict=False)
            yield from ((regions[-1].result, value) for value in values)
        elif line.strip().startswith("^bb"):
            yield from zip(re.findall(r"(%\w+):", line), passed, strict=False)
        elif regions and re.match(r"\s*}(?!\)| else| do)", line):
            regions.pop()
        else:
            computed = _RESULT.match(line)
            if computed and "!tt.ptr<" in line and computed[2] != "tt.load":
                values = _VALUE.findall(computed[3])
                # An offset is not a pointer, but may have the name of one in another loop.
                values = values[:1] if computed[2] == "tt.addptr" else values
                yield from ((computed[1], value) for value in values)
