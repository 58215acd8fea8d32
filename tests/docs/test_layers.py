"""The page on layers names every module of the folders that it draws."""

import re
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT
from helpers.documentation import DOCS

PAGE = (DOCS / "developing" / "layers.md").read_text()


@pytest.mark.parametrize("folder", ["saefast/lm", "saefast/activations", "saefast/sweep"])
def test_every_module_is_drawn(folder: str) -> None:
    drawn = re.search(rf"## Inside `{folder}/`\n.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert drawn
    modules = {path.stem for path in Path(CHECKOUT / folder).glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"\w+", drawn[1]))
