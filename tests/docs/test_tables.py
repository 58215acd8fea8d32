"""The numbers in README and documentation come from committed rows."""

import pytest
from helpers.documentation import PAGES

from bench.table import TABLES, filled, marked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_made_from_committed_rows(page) -> None:
    assert filled(page.read_text()) == page.read_text()


def test_every_table_appears_once() -> None:
    shown = [name for page in PAGES for name in marked(page.read_text())]
    assert sorted(shown) == sorted(TABLES)
