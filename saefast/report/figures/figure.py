"""Figures as the page takes them, and what several of them share."""

from collections.abc import Sequence, Sized
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Needed = TypeVar("Needed")


class Figure(NamedTuple):
    """Drawing with its texts."""

    name: str
    """name of the file and of the element on the page"""
    title: str
    caption: str
    """what is drawn and how to read it"""
    alt: str
    """alternative text: the content of the drawing in words"""
    svg: str


class Missing(Exception):
    """Exception for a figure that cannot be drawn; the message names what the run lacks."""


def need(what: Needed | None, said: str) -> Needed:
    """Return `what`, or raise `Missing(said)` if it is None or empty."""
    if what is None or (isinstance(what, Sized) and len(what) == 0):
        raise Missing(said)
    return what


def mean_by(rows: Sequence[dict[str, Any]], key: str, value: str) -> dict[Any, float]:
    """Return the mean of the known values of `value` for each value of `key`."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(row[key], []).append(row[value])
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def binned(
    x: NDArray[Any], y: NDArray[Any], x_edges: NDArray[Any], y_edges: NDArray[Any]
) -> NDArray[Any]:
    """Return the number of points in each cell; the outer cells include points beyond."""
    inside = [
        np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
        for values, edges in ((x, x_edges), (y, y_edges))
    ]
    counts = np.zeros((len(x_edges) - 1, len(y_edges) - 1))
    np.add.at(counts, tuple(inside), 1)
    return counts
