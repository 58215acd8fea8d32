"""How a matching divides the memory it may take between lists, blocks and arcs."""

from typing import NamedTuple

LIST_ENTRY = 16
"""Bytes that a neighbour in a list takes: a float64 and an int64"""
ARC = 72
"""Bytes that it takes once more as an arc, while arcs are sorted into a graph and solved"""
_LISTS = 0.75  # of the memory, lists and their arcs; the rest is for the arcs that lists left out


class Division(NamedTuple):
    """Of so many bytes."""

    neighbours: int
    """how long the lists are"""
    lists: int
    """bytes of the lists of both sides, as long as the matching lasts"""
    rest: float
    """bytes for blocks, while neighbours are looked for, and for arcs afterwards"""


def divided(memory: float, rows: int, columns: int, neighbours: int, solved: bool) -> Division:
    """Lists as long as is wished, where a one-to-one matching is `solved` as long as there is room.

    Shorter lists cost rounds. Nothing else depends on them.
    """
    k = min(neighbours, rows, columns) if solved else neighbours
    if solved:
        k = max(1, min(k, int(_LISTS * memory / ((rows + columns) * (LIST_ENTRY + ARC)))))
    lists = (rows + columns) * k * LIST_ENTRY
    return Division(k, lists, max(0.0, memory - lists))


def arcs_in(memory: float) -> int:
    """How many arcs have room."""
    return int(memory / ARC)
