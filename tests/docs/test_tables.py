"""The numbers of README and documentation are those of the committed rows."""

import pytest
from helpers.documentation import PAGES

from bench.table import TABLES, filled, marked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_made_of_committed_rows(page) -> None:
    assert filled(page.read_text()) == page.read_text()


def test_every_table_is_shown_once() -> None:
    shown = [name for page in PAGES for name in marked(page.read_text())]
    assert sorted(shown) == sorted(TABLES)
