"""The page on layers names every module of the folders in its diagrams."""

import re
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT
from helpers.documentation import DOCS

PAGE = (DOCS / "developing" / "layers.md").read_text()


@pytest.mark.parametrize("folder", ["saefast/lm", "saefast/activations", "saefast/sweep"])
def test_every_module_is_in_a_diagram(folder: str) -> None:
    drawn = re.search(rf"## Inside `{folder}/`\n.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert drawn
    modules = {path.stem for path in Path(CHECKOUT / folder).glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"\w+", drawn[1]))
