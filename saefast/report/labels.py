"""Names below an axis: in one line or two, cut or left out where they would overlap."""

from collections.abc import Sequence
from typing import NamedTuple

_LETTER = 6.8
_GAP = 8.0
_LEAST_LETTERS = 8
"""shortest cut name; numbers are shorter, and never cut"""
_MOST_LETTERS = 20


class Label(NamedTuple):
    """Name at a place below an axis."""

    x: float
    """coordinate of its middle"""
    line: int
    """line below the axis: 0 or 1"""
    words: str
    """the name, or its beginning with an ellipsis"""
    whole: str
    """the name"""


def placed(names: Sequence[tuple[float, str]], width: float) -> list[Label]:
    """Place names below an axis without overlap.

    Args:
        names: coordinate and words of each name, from left to right.
        width: width of the figure, beyond which no name extends.

    Returns:
        Labels of the names, or of some of them if there is no room for all.
    """
    longest = max((len(words) for _, words in names), default=0)
    whole = min(longest, int(width / _LETTER))
    lengths = [(1, whole), *((2, n) for n in range(whole, _LEAST_LETTERS - 1, -1)), (2, whole)]
    for lines, letters in lengths:
        labels = [
            _label(x, n % lines, _cut(words, letters), words, width)
            for n, (x, words) in enumerate(names)
        ]
        if all(_apart(a, b) for a, b in zip(labels, labels[lines:], strict=False)):
            return labels
    kept: list[Label] = []
    for x, words in names:
        label = _label(x, 0, _cut(words, _MOST_LETTERS), words, width)
        if not kept or _apart(kept[-1], label):
            kept.append(label)
    return kept


def _label(x: float, line: int, words: str, whole: str, width: float) -> Label:
    half = _LETTER * len(words) / 2
    return Label(max(min(x, width - half), half), line, words, whole)


def _apart(left: Label, right: Label) -> bool:
    return right.x - left.x >= _LETTER * (len(left.words) + len(right.words)) / 2 + _GAP


def _cut(words: str, letters: int) -> str:
    return words if len(words) <= letters else f"{words[: letters - 1]}…"
