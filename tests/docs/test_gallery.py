"""The notebooks of the gallery, which `make docs` runs, call public names and state no numbers."""

import ast
import re
from pathlib import Path

import pytest
from helpers.documentation import DOCS, name, prose

NOTEBOOKS = sorted(page for page in (DOCS / "gallery").glob("*.md") if page.stem != "index")
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OF_A_RUN = re.compile(r"\d\s?%|\b\d+\.\d{2,}")
"""Percentages and numbers of two decimals or more: results, which a page must compute."""


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_names_of_saefast_exist(page: Path) -> None:
    """A renamed function is found here, before the documentation is built."""
    code = "\n".join(CELL.findall(page.read_text()))
    tree = ast.parse(code)
    lines = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and node.names[0].name == "saefast")
        or (isinstance(node, ast.ImportFrom) and str(node.module).startswith("saefast"))
        or (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "saefast"
        )
    ]
    assert len(lines) > 3
    exec("\n".join(sorted(lines, key=lambda line: "import" not in line)), {})


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_text_states_no_results(page: Path) -> None:
    assert not OF_A_RUN.findall(prose(page))


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_statements_are_asserted(page: Path) -> None:
    cells = CELL.findall(page.read_text())
    assert sum("assert" in cell for cell in cells) >= 2
