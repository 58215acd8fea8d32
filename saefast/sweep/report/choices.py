"""Choice of the axis whose values have lines of their own, which needs no JavaScript."""

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from saefast.sweep.report.multiples import NULL, line_values, style_of
from saefast.sweep.report.sweep_data import SweepData


class Version(NamedTuple):
    """One of the drawings of a figure, shown with some of the choices."""

    by: int | None
    """index of the axis with a line for each value; None: one line for all cells"""
    classes: str
    """classes of the element that is shown or hidden"""


def versions_of(data: SweepData, axis: int) -> Iterator[Version]:
    """Yield the drawings of a figure over an axis.

    Where that axis itself is chosen for the lines, the drawing with one line is shown.
    """
    own = data.varied.index(axis) + 1
    yield Version(None, f"by by-0 by-{own}")
    for choice, by in enumerate(data.varied, start=1):
        if by != axis:
            yield Version(by, f"by by-{choice}")


def choices(data: SweepData) -> str:
    """Return the choices, and for each of them a key of the lines."""
    words = ["mean of all", *(data.axes[number].name for number in data.varied)]
    buttons = "".join(
        f'<label><input type="radio" name="lines" id="lines-{choice}"'
        f"{'' if choice else ' checked'}> {escape(each)}</label>"
        for choice, each in enumerate(words)
    )
    keys = [_line("mean", "s0", False) + _dot("cell", "s0 faint")]
    for number in data.varied:
        axis = data.axes[number]
        shown = line_values(axis)
        lines = [_line(axis.names[each], *style_of(line)) for line, each in enumerate(shown)]
        left_out = len(axis.values) - len(shown)
        keys.append("".join(lines) + (f"<span>not drawn: {left_out}</span>" * bool(left_out)))
    listed = "".join(
        f'<div class="by by-{choice}"><div class="key">{key}{_line("null", NULL, True)}</div></div>'
        for choice, key in enumerate(keys)
    )
    return (
        f'<form class="choices"><fieldset><legend>Lines</legend>{buttons}</fieldset>{listed}</form>'
    )


def choices_style(count: int) -> str:
    """Return the style sheet that shows the elements of the choice.

    A browser without `:has` shows the first choice.

    Args:
        count: number of choices.
    """
    rules = [".by:not(.by-0) { display: none; }"]
    for choice in range(1, count):
        chosen = f"main:has(#lines-{choice}:checked)"
        rules.append(
            f"{chosen} .by {{ display: none; }} {chosen} .by-{choice} {{ display: block; }}"
        )
    return "\n".join(rules) + "\n"


def _line(words: str, colour: str, dashed: bool) -> str:
    kind = " dashed" if dashed else ""
    return _swatch(f'<path class="l {colour}{kind}" d="M0 6h26"/>', words)


def _dot(words: str, colour: str) -> str:
    return _swatch(f'<circle class="f {colour}" cx="20" cy="6" r="3"/>', words)


def _swatch(mark: str, words: str) -> str:
    svg = f'<svg class="chart" viewBox="0 0 26 12" aria-hidden="true">{mark}</svg>'
    return f"<span>{svg} {escape(words)}</span>"
