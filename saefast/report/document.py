"""HTML documents that need no other file: head, navigation and sections."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Section(NamedTuple):
    """Part of a document below a heading."""

    title: str
    anchor: str
    """name that links to the section refer to"""
    content: str
    """HTML"""
    listed: bool = True
    """whether the navigation has a link to it"""


def document(
    title: str,
    sections: Sequence[Section],
    *,
    version: str,
    style: str,
    script: str = "",
    lead: str = "",
    later: str = "",
    skip_to: str = "findings",
) -> str:
    """Return an HTML document that loads nothing.

    Args:
        title: title and main heading.
        sections: parts of the document.
        version: version of saefast that made the run.
        style: style sheet.
        script: JavaScript; empty: none.
        lead: words below the main heading.
        later: elements after the script, which starts before they are read.
        skip_to: words for the content, in the first link for keyboards.

    Returns:
        HTML document.
    """
    links = "".join(
        f'<a href="#{escape(each.anchor)}">{escape(each.title)}</a>'
        for each in sections
        if each.listed
    )
    parts = "".join(
        f'<section id="{escape(each.anchor)}"><h2>{escape(each.title)}</h2>'
        f"{each.content}</section>\n"
        for each in sections
    )
    below = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    code = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f'<body><a class="skip" href="#main">Skip to the {skip_to}</a>'
        f"<header><h1>{escape(title)}</h1>{below}<nav>{links}</nav></header>\n"
        f'<main id="main">{parts}</main>\n'
        f"<footer>Made by saefast {escape(version)}.</footer>"
        f"{code}{later}</body></html>\n"
    )


def asset(name: str, package: str = "saefast.report") -> str:
    """Return a style sheet or script, a file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def unbroken(words: str) -> str:
    """Return text as HTML without line breaks between numbers and their units."""
    return escape(words).replace(" %", "\u00a0%")


def facts(entries: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values as HTML."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries)
    return f"<dl>{''.join(rows)}</dl>"


def named(svg: str, title: str, alt: str) -> str:
    """Return an SVG element with a title and alternative text for screen readers."""
    label = escape(f"{title}. {alt}", quote=True)
    return svg.replace("<svg ", f'<svg aria-label="{label}" ', 1)


def packed_rows(columns: Mapping[str, Any], name: str = "rows") -> str:
    """Return an element with columns of a table, which `unpacked` of table.js reads.

    They are base64 of gzipped JSON. Compressed, a table of tens of thousands of rows takes about a
    megabyte; base64 holds nothing that could end the element around it.

    Args:
        columns: lists of equal length by name.
        name: id of the element.
    """
    text = json.dumps(columns, separators=(",", ":"), allow_nan=False)
    # No time stamp, so that the same rows give the same bytes.
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return f'<script type="text/plain" id="{name}">{packed}</script>'


def paged_table(heads: str, filters: str, instead: str) -> str:
    """Return the elements that `pagedTable` of table.js fills with rows.

    Args:
        heads: `th` elements, each with a button and the name of its column in `data-column`.
        filters: elements of `chooser`, beside the search field.
        instead: where the rows are without JavaScript.
    """
    return (
        '<form class="filters" role="search">'
        '<label>Search <input type="search" id="search" autocomplete="off"></label>'
        f"{filters}</form>"
        '<p id="count" role="status" aria-live="polite">Loading…</p>'
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>'
        '<div class="pager"><button type="button" id="previous">Previous</button>'
        '<span id="place"></span><button type="button" id="next">Next</button></div>'
        f"<noscript>The table needs JavaScript; its rows are in {instead}.</noscript>"
    )


def heading(name: str, words: str, hint: str = "") -> str:
    """Return the heading of a column of a paged table, by which it is sorted."""
    title = f' title="{escape(hint)}"' if hint else ""
    return (
        f'<th scope="col" data-column="{escape(name)}">'
        f'<button type="button"{title}>{escape(words)}</button></th>'
    )


def chooser(words: str, name: str, values: Sequence[object]) -> str:
    """Return a filter of a paged table, with a choice of all values or one."""
    chosen = "".join(f"<option>{escape(str(value))}</option>" for value in values)
    return (
        f'<label>{escape(words)} <select id="{escape(name)}"><option value="">all</option>'
        f"{chosen}</select></label>"
    )
