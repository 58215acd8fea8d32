"""Figures as the page takes them, and parts that several of them share."""

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
    """heading above the drawing"""
    caption: str
    """content of the drawing and how to read it"""
    alt: str
    """alternative text: the content of the drawing in words, beyond what the reading says"""
    svg: str
    """the drawing, an SVG element"""
    reading: str
    """one sentence: the result that this run's drawing shows"""
    members: NDArray[Any] | None = None
    """[features alive] index of the mark that stands for each feature, -1 for none; None if marks
    do not stand for features"""


class Missing(Exception):
    """Exception for a figure that cannot be drawn; the message names the missing data."""


def need(what: Needed | None, lacking: str) -> Needed:
    """Return `what`, or raise `Missing(lacking)` if it is None or empty."""
    if what is None or (isinstance(what, Sized) and len(what) == 0):
        raise Missing(lacking)
    return what


def mean_by(rows: Sequence[dict[str, Any]], key: str, value: str) -> dict[Any, float]:
    """Return the mean of the known values of `value` for each value of `key`."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(row[key], []).append(row[value])
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def cells_of(
    x: NDArray[Any], y: NDArray[Any], x_edges: NDArray[Any], y_edges: NDArray[Any]
) -> NDArray[Any]:
    """Return the index of each point's cell, rows by x; outer cells include points beyond."""
    column, row = (
        np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
        for values, edges in ((x, x_edges), (y, y_edges))
    )
    cells: NDArray[Any] = column * (len(y_edges) - 1) + row
    return cells


def counted(cells: NDArray[Any], x_edges: NDArray[Any], y_edges: NDArray[Any]) -> NDArray[Any]:
    """Return the number of points in each cell, [x, y]."""
    shape = len(x_edges) - 1, len(y_edges) - 1
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
