"""What a figure is to the page it stands on."""

from collections.abc import Sequence, Sized
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Needed = TypeVar("Needed")


class Figure(NamedTuple):
    """A drawing and what it says."""

    name: str
    """of its file"""
    title: str
    caption: str
    """what is drawn and how to read it"""
    alt: str
    """what is to be seen, for who does not see it"""
    svg: str


class Missing(Exception):
    """A figure cannot be drawn: the message says what the run lacks."""


def need(what: Needed | None, said: str) -> Needed:
    """Return `what`, unless there is none of it."""
    if what is None or (isinstance(what, Sized) and len(what) == 0):
        raise Missing(said)
    return what


def mean_by(rows: Sequence[dict[str, Any]], key: str, value: str) -> dict[Any, float]:
    """For each value of `key` the mean of `value`, where it is known."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(row[key], []).append(row[value])
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def binned(
    x: NDArray[Any], y: NDArray[Any], x_edges: NDArray[Any], y_edges: NDArray[Any]
) -> NDArray[Any]:
    """How many points lie in each cell; those beyond count in the first and last."""
    inside = [
        np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
        for values, edges in ((x, x_edges), (y, y_edges))
    ]
    counts = np.zeros((len(x_edges) - 1, len(y_edges) - 1))
    np.add.at(counts, tuple(inside), 1)
    return counts
