"""Conversion of figures to PNG, by an optional package."""

from collections.abc import Callable

_ZOOM = 2
"""Pixels for each unit of a figure's coordinates, enough for print."""
_FONTS = (
    *("DejaVu Sans", "Liberation Sans", "Noto Sans", "Arial", "Helvetica", "Segoe UI", "Roboto"),
    *("Open Sans", "Ubuntu", "Cantarell", "FreeSans", "Verdana"),
)
_LETTER = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40">'
    '<text x="9" y="30" font-family="sans-serif">{}</text></svg>'
)


def rasteriser() -> Callable[[str], bytes]:
    """Return a function that converts an SVG file with its own colours to PNG."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            f"figures as PNG need the package resvg-py: pip install 'saefast[figures]' ({error})"
        ) from error
    # The renderer silently omits text without a font, and does not ask the system which font
    # sans-serif is.
    empty = svg_to_bytes(_LETTER.format(""))
    for font in _FONTS:
        if svg_to_bytes(_LETTER.format("x"), sans_serif_family=font) != empty:
            return lambda svg: bytes(svg_to_bytes(svg, zoom=_ZOOM, sans_serif_family=font))
    raise OSError(
        "figures as PNG need a font, and this system has none of the known ones: install DejaVu "
        "Sans (apt install fonts-dejavu-core), or use SVG figures only"
    )
