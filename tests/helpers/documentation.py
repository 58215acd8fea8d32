"""Pages of the documentation, and the code blocks in them."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from helpers.checkout import CHECKOUT

DOCS = CHECKOUT / "docs"
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
]

_LIST = re.compile(r"^_PACKAGES = (\(.*?^\))", re.DOTALL | re.MULTILINE)
PUBLIC_PACKAGES: tuple[str, ...] = ast.literal_eval(
    _LIST.findall((DOCS / "conf.py").read_text(encoding="utf-8"))[0]
)
"""Packages whose `__all__` lists public names, as the documentation lists them"""

_BLOCK = re.compile(
    r"(?:^<!-- run smaller: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    code: str
    reason: str | None
    """why tests run it with stand-ins; None: they run it as it is"""


def blocks(page: Path, language: str) -> list[Block]:
    """Return the blocks of a page that are marked with this language; "" for none."""
    return [
        Block(language, found["code"], found["reason"])
        for found in _BLOCK.finditer(page.read_text())
        if found["language"] == language
    ]


def prose(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    """Return the path of a page within the checkout, as the name of a test."""
    return str(page.relative_to(CHECKOUT))
