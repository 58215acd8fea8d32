"""The numbers in README and documentation come from committed rows."""

import re

import pytest
from helpers.documentation import PAGES

from bench.committed import load
from bench.table import TABLES, filled, marked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_made_from_committed_rows(page) -> None:
    assert filled(page.read_text()) == page.read_text()


def test_every_table_appears_once() -> None:
    shown = [name for page in PAGES for name in marked(page.read_text())]
    assert sorted(shown) == sorted(TABLES)


def test_the_nulls_of_the_demo_are_quoted_as_measured() -> None:
    (page,) = (page for page in PAGES if page.name == "nulls.md")
    (quoted,) = re.findall(r"In \[the demo\].*?:", page.read_text(), re.DOTALL)
    (found,) = (
        each["text"]
        for each in load("demo")["findings"]
        if each["topic"] == "Subspaces" and "unstable features" in each["text"]
    )
    measured = re.findall(r"0\.\d\d", found)
    assert re.findall(r"0\.\d\d", quoted) == measured[:4]
