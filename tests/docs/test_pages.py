"""The reference lists every public name, and links between pages exist."""

import importlib
import re
from pathlib import Path

import pytest
from helpers.documentation import DOCS, PAGES, PUBLIC_PACKAGES, name, prose

WITHOUT_PAGE = {"__version__"}


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_the_reference_lists_every_public_name(package: str) -> None:
    listed = set()
    for page in (DOCS / "reference").glob("*.md"):
        text = page.read_text()
        for directive in text.split(".. currentmodule:: ")[1:]:
            module, names = directive.split("\n", 1)
            listed |= {(module, name) for name in re.findall(r"^   (\w+)$", names, re.MULTILINE)}
        listed |= set(re.findall(r"^\.\. autodata:: (\S+)\.(\w+)$", text, re.MULTILINE))
    public = importlib.import_module(package)
    objects = {id(getattr(importlib.import_module(module), name)) for module, name in listed}
    missing = {
        each
        for each in set(public.__all__) - WITHOUT_PAGE - {"reference"}
        if id(getattr(public, each)) not in objects
    }
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose(page)):
        assert (page.parent / target).exists(), target
