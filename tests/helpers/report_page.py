"""A parser for the page of a report."""

import base64
import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

from saefast.report import write_report

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """The content of a page; parsing fails if elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if tag == "script":
            self._script = str(named.get("id", "code"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self._script] = data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def rows(self) -> dict:
        """Return the table of features, with the columns that are unpacked later."""
        rows = self._unpacked("rows")
        pieces = sum(name.startswith("details-") for name in self.scripts)
        for number in range(pieces):
            for name, values in self._unpacked(f"details-{number}").items():
                rows.setdefault(name, []).extend(values)
        return rows

    def _unpacked(self, name: str) -> dict:
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[name])))


def page_of(run: Path) -> Page:
    return Page(write_report(run)[0].read_text(encoding="utf-8"))
