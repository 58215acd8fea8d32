"""Figures as PNG, by a renderer that is installed on request."""

from collections.abc import Callable

_ZOOM = 2
"""Pixels for each unit of a figure's file: wide enough for print"""
_FONTS = (
    *("DejaVu Sans", "Liberation Sans", "Noto Sans", "Arial", "Helvetica", "Segoe UI", "Roboto"),
    *("Open Sans", "Ubuntu", "Cantarell", "FreeSans", "Verdana"),
)
_LETTER = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40">'
    '<text x="9" y="30" font-family="sans-serif">{}</text></svg>'
)


def rasteriser() -> Callable[[str], bytes]:
    """A function that makes a PNG of an SVG that brings its colours along."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            f"figures as PNG need the package resvg-py: pip install 'saefast[figures]' ({error})"
        ) from error
    # It leaves out what it has no font for, without a word, and does not ask the system which one
    # stands for sans-serif.
    empty = svg_to_bytes(_LETTER.format(""))
    for font in _FONTS:
        if svg_to_bytes(_LETTER.format("x"), sans_serif_family=font) != empty:
            return lambda svg: bytes(svg_to_bytes(svg, zoom=_ZOOM, sans_serif_family=font))
    raise OSError(
        "figures as PNG need a font to write with, and this system has none that is known: "
        "install DejaVu Sans (apt install fonts-dejavu-core), or leave the figures as SVG"
    )
