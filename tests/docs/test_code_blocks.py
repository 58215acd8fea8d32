"""The code blocks of README and documentation run."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.documentation import PAGES, blocks, name

from saefast.cli import COMMANDS
from saefast.pipeline.settings import settings_from
from saefast.sweep import sweep_from
from saefast.synthetic import PlantedWorld

WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_threads: None
) -> None:
    """Run all blocks of a page in order, in one namespace that starts with `rows` [n, d]."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    world = PlantedWorld.create(96, 32, active=4)
    names = {"rows": world.sample(4096, 0), "held_out": world.sample(1024, 1)}
    for block in blocks(page, "python"):
        code = compile(block.code, str(page), "exec")
        if block.reason is None:
            exec(code, names)
        else:
            exec(compile(_imports(block.code), str(page), "exec"), {})


def _imports(code: str) -> ast.Module:
    """Return the imports of code that is not run: names in them must exist."""
    tree = ast.parse(code)
    tree.body = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    return tree


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name)
def test_settings_are_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        printed = tomllib.loads(block.code)
        _ = sweep_from(printed, page.parent) if "grid" in printed else settings_from(printed)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    for command in re.findall(r"(?:^|`)saefast ([a-z]+)", page.read_text(), re.MULTILINE):
        assert command in COMMANDS
