"""Matchings that are timed on a GPU, without importing torch."""

from typing import NamedTuple

from bench.shapes import Shape


class Matching(NamedTuple):
    """Size and kind of a matching; n is the number of features of the other dictionary."""

    case: str
    """match, one to one, or nearest"""
    shape: Shape
    rounds: int
    fp32_share: int = 1
    """part of the rows that torch matches in float32, as a divisor"""
    faiss: bool = False
    """whether FAISS is timed"""


MATCHINGS = {
    "one_to_one": Matching("match", Shape(4096, 131072, 1, 131072), 3),
    "nearest_C1": Matching("nearest", Shape(4096, 131072, 1, 131072), 3, 1, faiss=True),
    "nearest_quarter": Matching("nearest", Shape(2304, 1 << 18, 1, 1 << 18), 3, 4, faiss=True),
    "nearest": Matching("nearest", Shape(2304, 1 << 20, 1, 1 << 20), 1, 32),
}
"""Matchings by name, the longest last.

The products of a million features of width 2304 take 6.5 s a side at 785 TFLOP/s, and about 100 s
in float32.
"""
RIVALS = ("saefast", "torch", "faiss")


def check_matching(argument: str) -> None:
    """Raise ValueError unless the argument is empty, a name, or a name and a rival."""
    name, _, rival = argument.partition(":")
    if argument and (name not in MATCHINGS or rival not in ("", *RIVALS)):
        raise ValueError(
            f"a matching is one of {', '.join(MATCHINGS)}, possibly with one of "
            f"{', '.join(f':{rival}' for rival in RIVALS)}; got {argument!r}"
        )
