"""SVG figures with axes and marks, coloured by the style sheet of the page."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib.resources import files

from saefast.report.labels import Label, placed
from saefast.report.scale import Scale, short

WIDTH, HEIGHT = 480, 300
_RIGHT, _TOP, _BOTTOM = 14, 30, 46
_NARROW, _WIDE = 6.6, 8
"""widths of a letter of the legend, at the size of the text and at its size on a phone"""
_GAP = 29.0
"""width of a mark of the legend, with the spaces around it"""
_LINE = 14
"""distance between two lines of names below the x axis"""


@dataclass
class Chart:
    """Frame with axes and marks.

    `colour` is a class of chart.css, s0 to s5. `hover` is the text of a mark under the pointer:
    the text of a shape, or the name of a line, whose values are shown beside it. `mark` is the
    number of a shape that stands for features, as in `Figure.members`.
    """

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    x_names: Sequence[str] = ()
    """categories at 0, 1, 2, ... in place of numbers"""
    y_names: Sequence[str] = ()
    x_marks: Sequence[float] = ()
    """positions of `x_names`, in place of 0, 1, 2, ...; names are then cut to the room they have"""
    left: int = 60
    """width reserved for the names or numbers of the y axis"""
    width: int = WIDTH
    height: int = HEIGHT
    top: int = _TOP
    """height reserved for the legend"""
    _marks: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, str]] = field(default_factory=list)

    def bar(
        self,
        left: float,
        right: float,
        value: float,
        colour: str,
        hover: str = "",
        *,
        mark: int | None = None,
    ) -> None:
        """Add a bar from the zero line to a value."""
        x0, x1, y0, y1 = self._x(left), self._x(right), self._y(0.0), self._y(value)
        top, height = min(y0, y1), abs(y1 - y0)
        self._rect(x0, top, max(x1 - x0 - 1, 0.5), height, f"f {colour}", hover, numbered(mark))

    def cell(
        self,
        x0: float,
        x1: float,
        y0: float,
        y1: float,
        colour: str,
        strength: float,
        hover: str = "",
        *,
        mark: int | None = None,
    ) -> None:
        """Add a rectangle, fainter for a strength below 1."""
        left, right, bottom, top = self._x(x0), self._x(x1), self._y(y0), self._y(y1)
        shape = f'fill-opacity="{max(strength, 0.0):.3f}"{numbered(mark)}'
        self._rect(left, top, right - left, bottom - top, f"f {colour}", hover, shape)

    def whisker(self, at: float, low: float, high: float) -> None:
        """Add a vertical interval of a value."""
        x, y0, y1 = self._x(at), self._y(low), self._y(high)
        self._marks.append(
            f'<path class="whisker" d="M{x:.1f} {y0:.1f}V{y1:.1f}M{x - 4:.1f} {y0:.1f}h8'
            f'M{x - 4:.1f} {y1:.1f}h8"/>'
        )

    def interval(self, low: float, high: float, y: float) -> None:
        """Add an interval of a value along the x axis."""
        x0, x1, at = self._x(low), self._x(high), self._y(y)
        self._marks.append(
            f'<path class="whisker" d="M{x0:.1f} {at:.1f}H{x1:.1f}M{x0:.1f} {at - 3:.1f}v6'
            f'M{x1:.1f} {at - 3:.1f}v6"/>'
        )

    def tick(self, x: float, y: float, colour: str, hover: str = "") -> None:
        """Add a short vertical line."""
        path = f"M{self._x(x):.1f} {self._y(y) - 7:.1f}v14"
        self._marks.append(f'<path class="l {colour}" d="{path}">{_title(hover)}</path>')

    def diamond(self, x: float, y: float, colour: str, hover: str = "") -> None:
        """Add a diamond."""
        path = f"M{self._x(x):.1f} {self._y(y) - 6:.1f}l6 6l-6 6l-6-6z"
        self._marks.append(f'<path class="f {colour}" d="{path}">{_title(hover)}</path>')

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float | None],
        colour: str,
        dashed: bool = False,
        *,
        hover: str = "",
    ) -> None:
        """Add a polyline, with a gap at every None."""
        path, values, pen = [], [], "M"
        for x, y in zip(xs, ys, strict=True):
            if y is None or not math.isfinite(y):
                pen = "M"
                continue
            path.append(f"{pen}{self._x(x):.1f} {self._y(y):.1f}")
            values.append(f"{x:.4g},{y:.4g}")
            pen = "L"
        kind = " dashed" if dashed else ""
        known = f' data-line="{escape(hover)}" data-values="{" ".join(values)}"' if hover else ""
        self._marks.append(f'<path class="l {colour}{kind}" d="{"".join(path)}"{known}/>')

    def band(
        self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str
    ) -> None:
        """Add the area between two lines."""
        there = [f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in zip(xs, high, strict=True)]
        back = [f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in zip(xs, low, strict=True)]
        self._marks.append(
            f'<path class="f {colour}" fill-opacity="0.18" d="M{"L".join(there + back[::-1])}Z"/>'
        )

    def point(
        self,
        x: float,
        y: float,
        colour: str,
        hover: str = "",
        *,
        mark: int | None = None,
        radius: float = 5,
        link: str = "",
    ) -> None:
        """Add a disc, which may link to another page."""
        at = f'cx="{self._x(x):.1f}" cy="{self._y(y):.1f}"{numbered(mark)}'
        disc = f'<circle class="f {colour}" {at} r="{radius:g}">{_title(hover)}</circle>'
        self._marks.append(f'<a href="{escape(link)}">{disc}</a>' if link else disc)

    def text(self, x: float, y: float, words: str) -> None:
        """Add centred text."""
        self._words(x, self._y(y) + 4, words)

    def above(self, x: float, words: str) -> None:
        """Add text above the frame, for charts without a legend."""
        self._words(x, self.top - 6, words)

    def rule(self, *, x: float | None = None, y: float | None = None) -> None:
        """Add a dashed line across the frame."""
        if x is not None:
            path = f"M{self._x(x):.1f} {self.top}V{self._bottom}"
        else:
            assert y is not None
            path = f"M{self.left} {self._y(y):.1f}H{self._right}"
        self._marks.append(f'<path class="rule" d="{path}"/>')

    def legend(self, words: str, colour: str, kind: str = "f") -> None:
        """Add an entry to the legend; `kind` is "f" for an area, "l" a line, "d" a dashed line."""
        self._legend.append((words, colour, kind))

    def svg(self) -> str:
        """Return the figure as an SVG element."""
        axes = f'data-x="{escape(self.x_label)}" data-y="{escape(self.y_label)}"'
        marks = f"<g {axes}>{''.join(self._marks)}</g>"
        return frame("".join([self._axes(), marks, self._legends()]), self.width, self.height)

    def _words(self, x: float, y: float, words: str) -> None:
        self._marks.append(
            f'<text x="{self._x(x):.1f}" y="{y:.1f}" text-anchor="middle">{escape(words)}</text>'
        )

    def _rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: str,
        hover: str,
        more: str = "",
    ) -> None:
        self._marks.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" {more}>{_title(hover)}</rect>'
        )

    def _x(self, value: float) -> float:
        return self.left + self.x(value) * (self._right - self.left)

    def _y(self, value: float) -> float:
        return self._bottom - self.y(value) * (self._bottom - self.top)

    @property
    def _right(self) -> int:
        return self.width - _RIGHT

    @property
    def _bottom(self) -> int:
        """Return the y coordinate of the x axis."""
        return self.height - _BOTTOM - _LINE * any(label.line for label in self._x_labels)

    @cached_property
    def _x_labels(self) -> list[Label]:
        """Return the numbers or names below the x axis."""
        if self.x_marks:
            named = zip(self.x_marks, self.x_names, strict=True)
            return placed([(self._x(value), words) for value, words in named], self.width)
        marked = self._marked(self.x, self.x_names)
        return [Label(self._x(value), 0, words, words) for value, words in marked]

    def _axes(self) -> str:
        parts = []
        for value, words in self._marked(self.y, self.y_names):
            y = self._y(value)
            if not self.y_names:
                parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self._right}"/>')
            parts.append(
                f'<text class="tick" x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{escape(words)}</text>"
            )
        for label in self._x_labels:
            hover = _title(label.whole if label.words != label.whole else "")
            y = self._bottom + 17 + _LINE * label.line
            parts.append(
                f'<text class="tick" x="{label.x:.1f}" y="{y}" text-anchor="middle">'
                f"{hover}{escape(label.words)}</text>"
            )
        parts.append(f'<path class="axis" d="M{self.left} {self._bottom}H{self._right}"/>')
        middle = (self.left + self._right) / 2
        parts.append(
            f'<text x="{middle:.0f}" y="{self.height - 8}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        height = (self.top + self._bottom) / 2
        parts.append(
            f'<text transform="translate(16 {height:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return "".join(parts)

    def _marked(self, scale: Scale, names: Sequence[str]) -> list[tuple[float, str]]:
        if names:
            return list(enumerate(names))
        ticks = scale.ticks()
        return [(value, short(value)) for value in ticks]

    def _legends(self) -> str:
        parts, x = [], float(self.left)
        wide = sum(_GAP + _WIDE * len(words) for words, *_ in self._legend) < self.width - self.left
        letter, kind_of_text = (_WIDE, "") if wide else (_NARROW, ' class="narrow"')
        for words, colour, kind in self._legend:
            if kind == "f":
                parts.append(f'<rect class="f {colour}" x="{x:.0f}" y="7" width="11" height="11"/>')
            else:
                dashed = " dashed" if kind == "d" else ""
                parts.append(f'<path class="l {colour}{dashed}" d="M{x:.0f} 13h16"/>')
                x += 5
            parts.append(f'<text{kind_of_text} x="{x + 15:.0f}" y="17">{escape(words)}</text>')
            x += _GAP + letter * len(words)
        return "".join(parts)


def numbered(mark: int | None) -> str:
    """Return the attribute of a shape that stands for the features of a mark, or nothing."""
    return "" if mark is None else f' data-mark="{mark}"'


def frame(content: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Return an SVG element with the content of a figure."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'class="chart">{content}</svg>'
    )


def standalone(svg: str, title: str) -> str:
    """Return a figure as an SVG file with its own colours: light, on white."""
    start, rest = svg.split(">", 1)
    size = f' width="{2 * WIDTH}" height="{2 * HEIGHT}">'
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return f"{start}{size}<title>{escape(title)}</title><style>{_style()}</style>{paper}{rest}\n"


def _style() -> str:
    """Return chart.css for programs that support neither variables nor media queries.

    Variables are replaced by the colours of the light page.
    """
    style = files("saefast.report").joinpath("chart.css").read_text(encoding="utf-8")
    style, _, _ = style.partition("@media")
    colours = dict(re.findall(r"(--\w+): ([^;]+);", style))
    style = re.sub(r"\s*--\w+: [^;]+;", "", style)
    return re.sub(r"var\((--\w+)\)", lambda found: colours[found[1]], style)


def _title(hover: str) -> str:
    return f"<title>{escape(hover)}</title>" if hover else ""
